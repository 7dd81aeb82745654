"""The pytest plugin: its fixtures and its import cost."""

import os
import subprocess
import sys
import textwrap


def run(code, *arguments):
    env = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(
        [sys.executable, *arguments, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=env,
    )


def test_importing_the_plugin_does_not_import_the_package():
    result = run(
        "import sys, pytest_qamera as _;"
        "print({'aiohttp', 'msgspec', 'attr', 'qamera_async'} & set(sys.modules))"
    )

    assert result.stdout.strip() == "set()", result.stderr


async def test_fixtures_provide_a_session_on_a_sandbox(qamera, qamera_sandbox):
    video = await (await qamera.register_video(image_id="img_1"))

    assert video.id in qamera_sandbox.records
    assert video.video_url.startswith(qamera_sandbox.cdn_url)
    assert qamera_sandbox.orders[0].body == {"imageId": "img_1"}


def test_fixture_without_pytest_asyncio_fails_with_its_name(tmp_path):
    test = tmp_path / "test_user.py"
    test.write_text("def test_other(): pass\ndef test_uses_it(qamera_sandbox): pass\n", "utf-8")
    code = f"""
        import sys

        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name == "pytest_asyncio":
                    raise ImportError(name)

        sys.meta_path.insert(0, Missing())
        import pytest

        options = ["-p", "pytest_qamera", "-p", "no:cacheprovider"]
        sys.exit(pytest.main([*options, "--rootdir", {str(tmp_path)!r}, {str(test)!r}]))
    """
    result = run(textwrap.dedent(code))

    assert "need pytest-asyncio" in result.stdout, result.stdout + result.stderr
    assert "1 passed" in result.stdout
