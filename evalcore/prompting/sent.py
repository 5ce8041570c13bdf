"""Prompts as they were sent, as text: stored token ids, decoded by the tokenizer they are of."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from evalcore.errors import DataError, EvalcoreError
from evalcore.identity import load_tokenizer, tokenizer_fingerprint


class Kept(Protocol):
    """What keeps prompts (``store.ResultStore``)."""

    def requests(self, cell: str) -> pa.Table:
        """Prompts of a cell as token ids; an ``EvalcoreError`` where they were not kept."""


class SentPrompts:
    """Decodes the prompts of cells, where the very tokenizer that wrote them is at hand.

    A tokenizer that is gone, cannot be read, or is not the one the cell records gives no text: a
    wrong prompt is worse than none. Why is kept in ``lost``.

    Attributes:
        lost: What could not be decoded, a sentence per reason.
        damaged: Those of them that are damaged files, which may be whole another day.
    """

    def __init__(self, source: Kept) -> None:
        self._source = source
        self._decoders: dict[tuple[str, str], Any] = {}
        self.lost: set[str] = set()
        self.damaged: set[str] = set()

    def contexts(self, cell: Mapping[str, Any], docs: Collection[str]) -> dict[str, list[str]]:
        """Document -> its contexts, special tokens included; several where choices differ there.

        Args:
            cell: A row of the cells table.
            docs: Ids of the documents that are wanted.
        """
        decoder, rows = self._rows(cell, docs)
        return {
            row["doc_id"]: [
                _text(decoder, ids)
                for ids in ([row["prompt"]] if row["prompt"] else row["contexts"] or [])
            ]
            for row in rows
        }

    def requests(self, cell: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
        """Document -> (context, continuation) of each of its requests."""
        decoder, rows = self._rows(cell, None)
        found = {}
        for row in rows:
            contexts, continuations = row["contexts"] or [], row["continuations"] or []
            if row["prompt"]:
                contexts, continuations = [row["prompt"]], [[]]
            if len(contexts) == 1:
                contexts = contexts * len(continuations)
            found[row["doc_id"]] = [
                (_text(decoder, context), _text(decoder, continuation))
                for context, continuation in zip(contexts, continuations, strict=False)
            ]
        return found

    def _rows(
        self, cell: Mapping[str, Any], docs: Collection[str] | None
    ) -> tuple[Any, list[dict[str, Any]]]:
        decoder = self._decoder(cell)
        if decoder is None:
            return None, []
        try:
            table = self._source.requests(cell["cell"])
        except DataError as error:  # damaged: it names the file
            self.damaged.add(str(error))
            self.lost.add(str(error))
            return None, []
        except EvalcoreError:
            self.lost.add("prompts were not kept")
            return None, []
        if docs is not None:
            wanted = pa.array(sorted(docs), pa.string())
            table = table.filter(pc.is_in(table["doc_id"].cast(pa.string()), value_set=wanted))
        rows: list[dict[str, Any]] = table.to_pylist()
        return decoder, rows

    def _decoder(self, cell: Mapping[str, Any]) -> Any:
        folder, recorded = cell.get("checkpoint_source") or "", cell.get("tokenizer") or ""
        key = (str(folder), str(recorded))
        if key not in self._decoders:
            self._decoders[key] = self._load(*key)
        return self._decoders[key]

    def _load(self, folder: str, recorded: str) -> Any:
        if not recorded:
            self.lost.add("which tokenizer wrote the prompts is not recorded")
            return None
        if not folder or not Path(folder).is_dir():
            self.lost.add("the tokenizer is not at hand")
            return None
        try:
            if tokenizer_fingerprint(folder) != recorded:
                self.lost.add(f"{folder}: the tokenizer is not the one the prompts were made with")
                return None
            file = Path(folder) / "tokenizer.json"
            if file.is_file():
                from tokenizers import Tokenizer  # of the extra `run`; reading does without

                return Tokenizer.from_file(str(file))
            return load_tokenizer(folder)
        except EvalcoreError as error:
            self.lost.add(str(error))
        except ImportError as error:
            self.lost.add(f"{error}; pip install 'evalcore[run]'")
        return None


def _text(decoder: Any, ids: Any) -> str:
    text: str = decoder.decode(list(ids), skip_special_tokens=False)
    return text
