"""The command with a ledger in PostgreSQL: as with a file, and no password where anybody reads."""

import postgres
import pytest
from command import QUICK, qamera

from qamera_async.cli.settling import ledger_command, ledger_name, whole_name
from qamera_async.sandbox import Sandbox

pytestmark = pytest.mark.slow

WORD = "sw0rdf1sh"
ROWS = "image_id,ref\nimg_1,sku-1\nimg_2,sku-2\n"


@pytest.fixture
def address():
    """A database without a ledger; its server looks at no password."""
    return postgres.server().database().replace("postgres@", f"postgres:{WORD}@")


async def test_a_batch_its_ledger_and_its_report(address, tmp_path):
    """All three take the address, and a doubt is settled by the command that is shown."""
    catalogue, report = tmp_path / "catalogue.csv", tmp_path / "report.html"
    catalogue.write_text(ROWS)
    asked = ("batch", catalogue, "--to", tmp_path / "clips", "--ledger", address, "--yes", *QUICK)
    async with Sandbox(job_seconds=0.05, quota=None) as sandbox:
        planned = await qamera(*asked, "--dry-run", sandbox=sandbox)
        sandbox.trouble("reset_before")
        first = await qamera(*asked, "--timeout", "1", sandbox=sandbox)
        shown = await qamera("ledger", address)
        written = await qamera("report", address, "--to", report)
        (intent,) = postgres.execute(address, "SELECT id FROM qamera.intents WHERE state = 'ambiguous'")[0]
        settled = await qamera("ledger", address, "abandon", intent)
        again = await qamera(*asked, sandbox=sandbox)
        orders = len(sandbox.orders)
    pages = [report.read_text(), (tmp_path / "clips" / "report.html").read_text()]
    told = "".join(ran.out + ran.err for ran in (planned, first, shown, written, settled, again))

    assert [ran.code for ran in (planned, first, shown, written, settled, again)] == [0, 4, 0, 0, 0, 0]
    assert orders == 2
    assert sorted(file.name for file in (tmp_path / "clips").glob("*.mp4")) == ["sku-1.mp4", "sku-2.mp4"]
    assert ledger_command(address, "abandon", intent) in shown.out
    assert "postgresql://postgres@127.0.0.1" in shown.out
    assert WORD not in told + "".join(pages)


async def test_a_database_without_a_ledger_is_told(address):
    """Looking makes none."""
    ran = await qamera("ledger", address)

    assert ran.code == 1
    assert "no such ledger" in ran.err
    assert WORD not in ran.out + ran.err
    assert postgres.execute(address, "SELECT 1 FROM pg_namespace WHERE nspname = 'qamera'") == []


@pytest.mark.parametrize(
    ("ledger", "shown", "name"),
    [
        ("/l/jobs.db", "/l/jobs.db", "jobs.db"),
        ("postgresql://h/db", "postgresql://h/db", "db"),
        ("postgresql://u:s3cret@h:5432/db", "postgresql://u@h:5432/db", "db"),
        ("postgresql://u:s3c?ret@h/db", "postgresql://u@h/db", "db"),
        ("postgresql://u:s3c:ret@h", "postgresql://u@h", "u@h"),
        ("postgresql://:s3cret@h/db", "postgresql://h/db", "db"),
        ("postgresql:///db?host=/run&password=s3cret&port=1", "postgresql:///db?host=/run&port=1", "db"),
        ("postgresql://u@h/db?sslpassword=s3cret", "postgresql://u@h/db", "db"),
    ],
)
def test_an_address_is_shown_without_its_password(ledger, shown, name):
    """In commands, in titles, and where it has to be found from anywhere; a path is shown as it is."""
    assert whole_name(ledger) == shown
    assert shown in ledger_command(ledger)
    assert ledger_name(ledger) == name
