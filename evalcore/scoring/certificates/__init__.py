"""``--certify``: a sample of what was scored is scored again, and both answers are held together.

``sampling`` chooses rows and asks the same engine once more, ``judging`` tells chance from a fault.
"""
