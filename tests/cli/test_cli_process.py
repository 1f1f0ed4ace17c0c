"""The command line as a process: help without torch and at once, real exit statuses, a reader that leaves.

Run: pytest tests/cli/test_cli_process.py
"""

import resource
import subprocess
import sys

PYTHON = [sys.executable, "-W", "error"]


def run(*arguments: str, cwd) -> subprocess.CompletedProcess[str]:
    command = [*PYTHON, "-m", "dinghai.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=60)


def test_help_and_refusals_never_import_torch(tmp_path):
    program = (
        "import sys\n"
        "from dinghai.cli import main\n"
        "assert main(['train', '--help']) == 0\n"
        "assert main(['train', '--update.lr', 'x']) == 2\n"
        "assert main(['resume', 'nothing']) == 2\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pyarrow', 'safetensors'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*PYTHON, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # Processor time, since other processes may share the machine. torch alone takes about two seconds to import.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


def test_exit_statuses(tmp_path):
    assert run(cwd=tmp_path).returncode == 0
    wrong = run("trian", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "dinghai: there is no command trian; did you mean train?\n"


def test_an_argument_that_is_not_text_is_refused(tmp_path):
    done = subprocess.run(
        [*PYTHON, "-m", "dinghai.cli", "train", b"--run.name", b"\xff\xfe"],
        capture_output=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"dinghai: ")
    assert b"is not UTF-8 text" in done.stderr


def test_a_reader_that_leaves_early_is_no_crash(tmp_path):
    command = f"{sys.executable} -W error -m dinghai.cli train --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.returncode in (0, 1)
