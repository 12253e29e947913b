"""Conversations on disk: each response with its question and the response before it."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from hiermem.server.database import Database

LONGEST = 50
"""Turns of a conversation that are looked up; far more than count for a question."""


@dataclass(frozen=True)
class StoredTurn:
    """A question and the response to it, as JSON has it."""

    question: str
    response: dict[str, Any]


class Sessions:
    """The responses of all clients; each sees its own.

    Args:
        most: that are kept; the oldest go first.
    """

    def __init__(self, database: Database, most: int) -> None:
        self._database, self._most = database, most

    def keep(self, owner: str, question: str, response: dict[str, Any]) -> None:
        """Commit a finished turn."""
        with self._database.transaction():
            self._database.change(
                "INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?)",
                response["id"],
                response["previous_response_id"],
                owner,
                response["created_at"],
                question,
                json.dumps(response),
            )
            self._database.change(
                "DELETE FROM responses WHERE id IN "
                "(SELECT id FROM responses ORDER BY created DESC, rowid DESC LIMIT -1 OFFSET ?)",
                self._most,
            )

    def turn(self, owner: str, response: str) -> StoredTurn | None:
        """One turn; None: there is none of that name for this client."""
        rows = self._database.rows(
            "SELECT question, body FROM responses WHERE id = ? AND owner = ?", response, owner
        )
        return StoredTurn(rows[0]["question"], json.loads(rows[0]["body"])) if rows else None

    def turns(self, owner: str, response: str | None, most: int = LONGEST) -> list[StoredTurn]:
        """The conversation up to a response, oldest first, its last turns if they are many; as far as it was
        not deleted."""
        found: list[StoredTurn] = []
        while response is not None and len(found) < most:
            turn = self.turn(owner, response)
            if turn is None:
                break
            found.append(turn)
            response = turn.response["previous_response_id"]
        return found[::-1]

    def keep_only(self, documents: Collection[str]) -> None:
        """Delete the turns that quote any other document: it has gone."""
        cited = self._database.rows(
            "SELECT DISTINCT tree.atom AS name FROM responses, json_tree(body) AS tree "
            "WHERE tree.key = 'filename'"
        )
        for name in {row["name"] for row in cited} - set(documents):
            self._database.change(
                "DELETE FROM responses WHERE EXISTS (SELECT 1 FROM json_tree(body) AS tree "
                "WHERE tree.key = 'filename' AND tree.atom = ?)",
                name,
            )

    def delete(self, owner: str, response: str) -> bool:
        """Delete a turn; whether it was there."""
        deleted = self._database.change("DELETE FROM responses WHERE id = ? AND owner = ?", response, owner)
        return deleted > 0
