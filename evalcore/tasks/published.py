"""The JSON schema of task files, for editors; kept beside the models it comes from.

``python -m evalcore.tasks.published`` writes it again after a model has changed.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

from evalcore.tasks.model import TaskDefinition

TASK_SCHEMA_FILE = Path(__file__).parent / "schema" / "task.schema.json"


def schema_text(model: type[BaseModel], title: str) -> str:
    """Published form of a model's JSON schema."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    schema.update(model.model_json_schema())
    schema["title"] = title
    return json.dumps(schema, indent=2) + "\n"


def task_schema_text() -> str:
    """JSON schema of a task file."""
    return schema_text(TaskDefinition, "evalcore task file")


if __name__ == "__main__":
    TASK_SCHEMA_FILE.write_text(task_schema_text(), "utf-8")
