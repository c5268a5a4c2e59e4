"""Stores that fail and folders that cannot be written."""

import http.server
import shutil
import sqlite3
import subprocess
import threading

import pytest

from pruning_lab.errors import UserError
from tests.bad_inputs.attempts import prepared

QUICK = ["attributions=none", "finetune=none", "baseline.training.epochs=1", "schedule.target=0.3"]


def test_a_server_that_answers_with_500(tmp_path, store):
    class Fails(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_error(500)

        do_GET = do_POST

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Fails) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(UserError, match=rf"tracking.uri={uri} cannot be reached: .*500"):
            prepared(tmp_path, store, [f"tracking.uri={uri}"])
        server.shutdown()


def test_a_database_that_cannot_be_written(tmp_path, store):
    path = tmp_path / "read_only.db"
    with sqlite3.connect(path) as database:
        database.execute("create table notes (text)")
    fixed = shutil.which("chattr")
    if not fixed or subprocess.run([fixed, "+i", path], check=False).returncode:
        pytest.skip("this file system cannot make a file immutable")
    try:
        with pytest.raises(UserError, match=r"read_only.db cannot be reached: .*readonly database"):
            prepared(tmp_path, store, [f"tracking.uri=sqlite:///{path}"])
    finally:
        subprocess.run([fixed, "-i", path], check=True)


@pytest.mark.parametrize("place", ["{folder}/file", "/dev/full", "/proc/nothing"])
def test_a_folder_for_baselines_that_cannot_be_written(place, tmp_path, store):
    (tmp_path / "file").touch()
    place = place.format(folder=tmp_path)
    with pytest.raises(UserError, match=rf"baseline.folder={place} cannot be written: "):
        prepared(tmp_path, store, [f"baseline.folder={place}", *QUICK])
