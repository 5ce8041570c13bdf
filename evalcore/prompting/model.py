"""What a prompt file may say (pydantic: outside input enters here)."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


class PromptDefinition(BaseModel):
    """One prompt file: how a document of a group's tasks becomes text."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME_PATTERN)
    group: str = Field(pattern=NAME_PATTERN, description="Tasks of this group can use it.")
    description: str = ""
    template: str = Field(description="Jinja template of the context; fields are its variables.")
    target: str = Field(
        "{{ choice }}", description="Jinja template of one continuation (choice: choice text)."
    )
    delimiter: str = Field(" ", description="Between context and continuation.")
    separator: str = Field("\n\n", description="Between shots and before the question.")
    label_words: dict[str, str] = Field({}, description="Label name -> words shown instead.")
    system: str | None = Field(None, description="System text, used with a chat template only.")

    @field_validator("label_words", mode="before")
    @classmethod
    def _texts(cls, value: object) -> object:
        if isinstance(value, dict) and any(
            isinstance(item, bool) for pair in value.items() for item in pair
        ):
            raise ValueError('quote yes/no words: YAML reads them as true/false ("yes", "no")')
        return value

    @field_validator("label_words")
    @classmethod
    def _different(cls, value: dict[str, str]) -> dict[str, str]:
        if len(set(value.values())) != len(value):
            raise ValueError("two labels may not have the same words")
        return value
