"""The JSON schema of prompt files, for editors; kept beside the model it comes from.

``python -m evalcore.prompting.published`` writes it again after the model has changed.
"""

from __future__ import annotations

from pathlib import Path

from evalcore.prompting.model import PromptDefinition
from evalcore.tasks.published import schema_text

PROMPT_SCHEMA_FILE = Path(__file__).parent / "schema" / "prompt.schema.json"


def prompt_schema_text() -> str:
    """JSON schema of a prompt file."""
    return schema_text(PromptDefinition, "evalcore prompt file")


if __name__ == "__main__":
    PROMPT_SCHEMA_FILE.write_text(prompt_schema_text(), "utf-8")
