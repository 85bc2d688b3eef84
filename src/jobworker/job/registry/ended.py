"""What the registry knows of finished jobs together: sums, who ended first, who is being removed.

A job that is to be removed is moved, in one transaction, from the table of jobs to that of
removals: from then on nothing that asks for jobs can find it, and its request_id is free. The row
there stays until its files are gone, so whatever is interrupted is finished later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobworker.job.retention import Candidate, Totals

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from jobworker.job.registry.store import Store


class EndedJobs:
    """Short calls on a Store: each one reads or writes a bounded number of rows, by an index.

    They raise what the calls of the Store raise.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def totals(self) -> Totals:
        """Return the sums over all finished jobs. Those not measured yet count as no bytes."""
        (row,) = self._store.read("SELECT jobs, disk_bytes FROM totals", {})
        return Totals(row["jobs"], row["disk_bytes"])

    def oldest(self, after: Candidate | None, limit: int) -> list[Candidate]:
        """Return the jobs that ended first, beginning with the one `after` the last one known."""
        begin = "" if after is None else "AND (ended_at, id) > (:ended_at, :id)"
        found = self._store.read(
            f"""
            SELECT id, ended_at, disk_bytes FROM jobs INDEXED BY jobs_by_end
            WHERE output_size IS NOT NULL AND ended_at IS NOT NULL {begin}
            ORDER BY ended_at, id LIMIT :limit
            """,  # noqa: S608 - no input in it
            {
                "ended_at": after.ended_at if after else None,
                "id": after.id if after else None,
                "limit": limit,
            },
        )
        return [Candidate(row["id"], row["ended_at"], row["disk_bytes"] or 0) for row in found]

    def unmeasured(self, limit: int) -> list[str]:
        """Return finished jobs of which it is not known how much disk they take."""
        found = self._store.read(
            """
            SELECT id FROM jobs INDEXED BY jobs_unmeasured
            WHERE output_size IS NOT NULL AND disk_bytes IS NULL LIMIT :limit
            """,
            {"limit": limit},
        )
        return [row["id"] for row in found]

    def measured(self, sizes: Iterable[tuple[str, int]]) -> None:
        """Record how many bytes of disk jobs take."""
        with self._store.transaction():
            for job_id, disk_bytes in sizes:
                self._store.write(
                    "UPDATE jobs SET disk_bytes = :bytes WHERE id = :id",
                    {"bytes": disk_bytes, "id": job_id},
                )

    def begin_removing(
        self, job_ids: Iterable[str], tell: Callable[[str], None] = lambda _job_id: None
    ) -> frozenset[str]:
        """Forget jobs, and remember that their files have to go; return which ones were there.

        `tell` is called for each of these while the transaction is open.
        """
        found = set()
        with self._store.transaction():
            for job_id in job_ids:
                values = {"id": job_id}
                if self._store.write("DELETE FROM jobs WHERE id = :id", values):
                    self._store.write("INSERT OR IGNORE INTO removing (id) VALUES (:id)", values)
                    tell(job_id)
                    found.add(job_id)
        return frozenset(found)

    def removing(self, limit: int, skip: Collection[str] = ()) -> list[str]:
        """Return jobs whose files may still be there, but for those in `skip`."""
        found = self._store.read(
            "SELECT id FROM removing LIMIT :limit", {"limit": limit + len(skip)}
        )
        return [row["id"] for row in found if row["id"] not in skip][:limit]

    def removed(self, job_ids: Iterable[str]) -> None:
        """Record that the files of jobs are gone."""
        with self._store.transaction():
            for job_id in job_ids:
                self._store.write("DELETE FROM removing WHERE id = :id", {"id": job_id})
