"""What a prompt file may say (pydantic: outside input enters here)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from evalcore.prompting.templates import TemplateFault, check_template

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
RESERVED_NAMES = ("all", "paper", "paraphrases", "grammar")
"""Names a selection uses for itself."""
_LONGEST = 20_000


class PromptDefinition(BaseModel):
    """One prompt file: how a document of a group's tasks becomes text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME_PATTERN)
    group: str = Field(pattern=NAME_PATTERN, description="Tasks of this group can use it.")
    description: str = ""
    template: str = Field(
        max_length=_LONGEST,
        description="Jinja template of the context; fields are its variables, and for tasks with "
        "choices also choices, letters and listing.",
    )
    target: str = Field(
        "{{ choice }}",
        max_length=_LONGEST,
        description="Jinja template of one continuation (choice: text or letter of the choice, "
        "index: its number from 0).",
    )
    delimiter: str = Field(" ", description="Between context and continuation.")
    separator: str = Field("\n\n", description="Between shots and before the question.")
    label_words: dict[str, str | list[str]] = Field(
        {},
        description="Label name -> words shown and scored instead: all labels of a task or none. "
        "May hold labels of several tasks. A list: the label stands for each of these texts.",
    )
    system: str | None = Field(None, description="System text, used with a chat template only.")
    listing: Literal["cloze", "letters"] = Field(
        "cloze",
        description="letters: the choices stand in the context ({{ listing }}) and their letters "
        "are scored; cloze: their text is scored.",
    )
    answer: Literal["choices", "first_token", "constrained", "free"] = Field(
        "choices", description="How a choice is made, where a selection does not say."
    )

    @field_validator("name")
    @classmethod
    def _free(cls, value: str) -> str:
        if value in RESERVED_NAMES:
            raise ValueError(f"a prompt may not be called {', '.join(RESERVED_NAMES)}")
        return value

    @field_validator("template", "target")
    @classmethod
    def _template(cls, value: str) -> str:
        try:
            check_template(value)
        except TemplateFault as error:
            raise TemplateInFileError(error) from None
        return value

    @field_validator("label_words", mode="before")
    @classmethod
    def _texts(cls, value: object) -> object:
        parts = (
            [item for key, words in value.items() for item in (key, words)]
            if isinstance(value, dict)
            else []
        )
        flat = [x for part in parts for x in (part if isinstance(part, list) else [part])]
        if any(isinstance(item, bool) for item in flat):
            raise ValueError('quote yes/no words: YAML reads them as true/false ("yes", "no")')
        return value

    @field_validator("label_words")
    @classmethod
    def _not_empty(cls, value: dict[str, str | list[str]]) -> dict[str, str | list[str]]:
        for words in value.values():
            texts = [words] if isinstance(words, str) else words
            if not texts or any(not text.strip() for text in texts):
                raise ValueError("a label's words may not be empty")
        return value


class TemplateInFileError(ValueError):
    """Carries a template's fault through pydantic."""

    def __init__(self, fault: TemplateFault) -> None:
        self.fault = fault.fault
        super().__init__(str(fault))
