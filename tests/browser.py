"""The system's Chromium, for tests that look at a page."""

import os
import shutil
import subprocess
from contextlib import asynccontextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def missing(reason):
    """Skip what needs a browser, or fail where ``QAMERA_BROWSER`` is "required"."""
    if os.environ.get("QAMERA_BROWSER") == "required":
        pytest.fail(f"a browser is required here: {reason}")
    pytest.skip(reason)


def found():
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def executable():
    """Give the path of the browser; root on Debian installs it where it is missing."""
    apt = shutil.which("apt-get")
    if found() is None and apt is not None and os.geteuid() == 0:
        subprocess.run([apt, "install", "-y", "-q", "chromium"], capture_output=True, check=False)
    return found() or missing(f"none of {', '.join(NAMES)} is installed")


@asynccontextmanager
async def chromium():
    """Give the browser, headless."""
    try:
        from playwright.async_api import async_playwright  # noqa: PLC0415 - its absence is a skip
    except ModuleNotFoundError:
        missing("playwright isn't installed")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable(), args=FLAGS)
        try:
            yield browser
        finally:
            await browser.close()
