"""The tables of a journal's database, and the migration from version 1."""

from typing import Final

VERSION: Final = 2

CURRENT_RUN: Final = "(SELECT max(id) FROM runs)"
"""SQL expression: the id of the latest run. Earlier runs are never written."""

OUTCOME_COLUMNS: Final = (
    "ordinal line account_id state attempts status error_type scope applied instance elapsed settled_at "
    "assignment"
)

_RUNS: Final = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, token TEXT NOT NULL, began REAL, ended REAL, state TEXT NOT NULL, selection TEXT,
    halted TEXT, target TEXT, total INTEGER, input BLOB, rows BLOB, pool BLOB, api_key BLOB, on_unknown TEXT,
    starts TEXT, counts TEXT, command TEXT, retry_command TEXT, folder TEXT
);
"""
_OUTCOMES: Final = """
CREATE TABLE outcomes (
    run INTEGER NOT NULL, ordinal INTEGER NOT NULL, line INTEGER, account_id TEXT NOT NULL,
    state TEXT NOT NULL, attempts INTEGER NOT NULL, status INTEGER, error_type TEXT, scope TEXT,
    applied TEXT, instance TEXT, elapsed REAL NOT NULL, settled_at REAL NOT NULL, assignment TEXT,
    PRIMARY KEY (run, ordinal)
) WITHOUT ROWID;
"""
_LATEST: Final = f"""
CREATE VIEW latest AS SELECT {OUTCOME_COLUMNS.replace(" ", ", ")} FROM outcomes WHERE run = {CURRENT_RUN};
"""
SCHEMA: Final = f"""
CREATE TABLE run (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE generations (ordinal INTEGER PRIMARY KEY, generation INTEGER NOT NULL, key TEXT);
CREATE TABLE covered (ordinal INTEGER PRIMARY KEY);
CREATE TABLE changes (first INTEGER PRIMARY KEY, hashes BLOB NOT NULL);
CREATE TABLE proxies (
    label TEXT PRIMARY KEY, failures INTEGER NOT NULL, quarantined_at REAL, probe_at REAL
) WITHOUT ROWID;
INSERT INTO run VALUES ('key', randomblob(16)), ('salt', randomblob(16));
{_RUNS} {_OUTCOMES} {_LATEST}
"""
"""
``outcomes`` has one row per run and account. The tables ``run``, ``generations`` and ``covered`` hold what is
needed to resume the latest run. Columns of ``runs`` that need an explanation:

- ``selection``: description of the accounts in the run; NULL for all.
- ``starts``: JSON array with when, by whom, where and how the run was started and resumed.
- ``counts``: JSON array with accounts and requests by state; NULL until the run has ended.
"""

# A journal of version 1 holds one run, and stores in the table ``run`` what is now in columns of ``runs``.
_FACTS: Final = {"token": "run"} | {
    column: column.replace("_", " ")
    for column in (
        "began halted selection target total input rows pool on_unknown command retry_command folder"
    ).split()
}
# Version 1 did not record that a run was stopped. Then it has skipped accounts without an error.
_FIRST_STATE: Final = """
    CASE WHEN EXISTS (SELECT 1 FROM run WHERE name = 'under way') THEN 'running'
        WHEN EXISTS (SELECT 1 FROM run WHERE name = 'halted') THEN 'halted'
        WHEN (SELECT value FROM run WHERE name = 'total') <= (
            SELECT count(*) FROM main.outcomes
            WHERE state != 'skipped' OR (attempts = 0 AND error_type NOT NULL)
        ) THEN 'complete'
        ELSE 'interrupted' END
"""
_FIRST_RUN: Final = (
    f"SELECT 1 AS id, {_FIRST_STATE} AS state, (SELECT max(settled_at) FROM main.outcomes) AS ended, "
    "NULL AS starts, NULL AS counts, NULL AS api_key, "
    + ", ".join(
        f"(SELECT value FROM run WHERE name = '{name}') AS {column}" for column, name in _FACTS.items()
    )
)
_V1_OUTCOMES: Final = OUTCOME_COLUMNS.replace(" ", ", ").replace("assignment", "proxy AS assignment")
MIGRATION: Final = f"""
BEGIN;
{_RUNS}
INSERT INTO runs (id, state, ended, starts, counts, api_key, {", ".join(_FACTS)}) {_FIRST_RUN};
ALTER TABLE outcomes RENAME TO old;
{_OUTCOMES}
INSERT INTO outcomes SELECT 1, {_V1_OUTCOMES} FROM old;
DROP TABLE old;
ALTER TABLE generations ADD COLUMN key TEXT;
ALTER TABLE proxies ADD COLUMN probe_at REAL;
DELETE FROM run WHERE name IN ({", ".join(f"'{name}'" for name in _FACTS.values())});
{_LATEST}
PRAGMA user_version = {VERSION};
COMMIT;
"""
V1_VIEWS: Final = f"""
CREATE TEMP VIEW runs AS {_FIRST_RUN};
CREATE TEMP VIEW latest AS SELECT {_V1_OUTCOMES} FROM main.outcomes;
CREATE TEMP VIEW outcomes AS SELECT 1 AS run, * FROM latest;
CREATE TEMP VIEW proxies AS SELECT *, NULL AS probe_at FROM main.proxies;
"""
"""SQL statements with which a journal of version 1 is read like one of the present version."""


def views_of(run: int) -> str:
    """Return SQL statements that make queries for the latest run read run number *run*."""
    return f"""
CREATE TEMP VIEW runs AS SELECT * FROM main.runs WHERE id <= {run:d};
CREATE TEMP VIEW run AS SELECT * FROM main.run WHERE {run:d} = (SELECT max(id) FROM main.runs);
CREATE TEMP VIEW proxies AS SELECT * FROM main.proxies WHERE {run:d} = (SELECT max(id) FROM main.runs);
{_LATEST.replace("CREATE VIEW", "CREATE TEMP VIEW")}
"""
