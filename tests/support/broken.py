"""A SQLite connection that fails where a test says so."""

import sqlite3


def disk_error(code, text="disk I/O error"):
    """An error as SQLite would raise it."""
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


class BrokenConnection:
    """Passes everything on, except the statements it was told to fail.

    Args:
        whole: the connection behind it.
        statement: the one to fail.
        error: what to raise.
        after: do the statement first, then raise, as a failed fsync does.
        times: how often; then all is well again.
    """

    def __init__(self, whole, statement, error, *, after=False, times=1):
        self._whole = whole
        self._statement = statement
        self._error = error
        self._after = after
        self.left = times

    def execute(self, statement, *args):
        if statement == self._statement and self.left > 0:
            self.left -= 1
            if self._after:
                self._whole.execute(statement, *args)
            raise self._error
        return self._whole.execute(statement, *args)

    def backup(self, target):
        if self._statement == "backup" and self.left > 0:
            self.left -= 1
            raise self._error
        self._whole.backup(target)

    def __getattr__(self, name):
        return getattr(self._whole, name)


def break_database(database, statement, error, **options):
    """Make the writer's next such statements fail."""
    database._connection = BrokenConnection(
        database._connection, statement, error, **options
    )
    return database._connection
