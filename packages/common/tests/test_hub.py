"""Model cards and pushes: what a saved model says of itself, and what reaches the Hub (here one on this machine)."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import save_file

from reproalign.common.cli import main
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run
from reproalign.common.records.markdown import public

BASE = "org/base@" + 40 * "1"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that keeps what it is sent: ``files``, and ``down`` to refuse commits."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "whoami" in self.path:
                return self.answer({"name": "me", "auth": {"accessToken": {"role": server.role}}})
            if "/tree/" not in self.path:  # which agents there are: of no concern
                return self.answer({"standardEnvVars": [], "harnesses": {}})
            return self.answer([{"type": "file", "path": name, "size": 1, "oid": "0"} for name in server.files])

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            if self.path.endswith("/create"):
                server.made = json.loads(body)
                return self.answer({"url": f"{server.url}/org/model"})
            if "/preupload/" in self.path:
                names = [entry["path"] for entry in json.loads(body)["files"]]
                modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
                return self.answer({"files": modes})
            if "/commit/" not in self.path:  # is the card's header valid?
                return self.answer({"errors": [], "warnings": []})
            if server.down:
                return self.answer({"error": "out of order"}, 503)
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                if line["key"] == "deletedFile":
                    del server.files[line["value"]["path"]]
            return self.answer({"commitUrl": f"{server.url}/org/model/commit/1", "commitOid": "1"})

        def answer(self, value: object, code: int = 200) -> None:
            body = json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url, server.files, server.down, server.role = f"http://127.0.0.1:{server.server_port}", {}, False, "write"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "harnesses.json"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield server
    server.shutdown()
    server.server_close()


def finished(folder: Path, *, base: str = BASE, adapter: str | None = None) -> Path:
    """A run of the core's that has made ``model``."""
    words = [f"data.path={folder.parent}/my pairs.jsonl", f"output_dir={folder}"]
    config = {"output_dir": str(folder), "seed": 3, "data": {"path": f"{folder.parent}/my pairs.jsonl"}}
    with Run.open(Invocation(["mmpo", "train", *words], "reproalign.common", "train", "m:C", "m:f", config)) as run:
        model = folder / "model"
        model.mkdir()
        save_file({"weight": torch.ones(2)}, model / "model.safetensors")
        if adapter:
            (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": adapter}))
            (model / "README.md").write_text(f"base_model: {adapter}")
        run.add_fingerprint("weights", "policy", base, name=base.partition("@")[0])
        run.used_data({"train": {"sha256": 64 * "a", "path": f"{folder.parent}/my pairs.jsonl", "rows_used": 12}})
        run.set_metrics({"before": {"accuracy": 0.5}, "after": {"accuracy": 0.75}})
        run.made_weights("model", model)
    return folder


def test_a_saved_model_has_a_card_with_what_the_record_says_and_no_private_path(tmp_path):
    text = (finished(tmp_path / "a") / "model" / "README.md").read_text()
    metadata = ModelCard(text).data
    assert (metadata.base_model, metadata.library_name) == ("org/base", "transformers")
    assert "| accuracy | 0.5 | 0.75 |" in text
    assert "| train | …/my pairs.jsonl | 12 |" in text
    assert f"| policy | org/base | `{BASE}` |" in text
    assert "SHA-256 of run.json" in text
    assert str(tmp_path.parent) not in text


def test_the_card_of_an_adapter_takes_the_place_of_pefts(tmp_path):
    folder = finished(tmp_path / "a", base="ab", adapter=str(tmp_path / "base"))
    text = (folder / "model" / "README.md").read_text()
    assert ModelCard(text).data.library_name == "peft"
    assert "AutoPeftModelForCausalLM" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("x=/home/me/p.jsonl y=~/m/a output_dir=runs/a", "x=…/p.jsonl y=…/a output_dir=runs/a"),
        (
            "a=[/x/y/z.json,/b] https://host/v1/x org/model 1/2 ./a/b",
            "a=[…/z.json,…/b] https://host/v1/x org/model 1/2 ./a/b",
        ),
    ],
)
def test_absolute_paths_are_cut_to_their_last_part(text, shown):
    assert public(text) == shown


def test_a_push_sends_the_model_with_its_card_and_a_public_record(tmp_path, hub, capsys):
    hub.files = {"model-00001-of-00002.safetensors": b"old", "LICENSE": b"kept"}
    assert main(["push", str(finished(tmp_path / "a")), "org/model", "--private"]) == 0
    assert hub.files.keys() == {"model.safetensors", "README.md", "record.json", "LICENSE"}
    assert "private" in hub.made.values()
    assert '"org/model"' in hub.files["README.md"].decode()
    assert str(tmp_path) not in hub.files["record.json"].decode()
    assert "pushed: " in capsys.readouterr().out


def test_a_push_that_fails_keeps_the_run_and_can_be_repeated(tmp_path, hub, capsys):
    folder = finished(tmp_path / "a")
    hub.down = True
    assert main(["push", str(folder), "org/model"]) == 1
    assert f"the run is kept; again: reproalign push {folder} org/model" in capsys.readouterr().err
    hub.down = False
    assert main(["push", str(folder), "org/model"]) == 0


def test_an_adapter_is_pushed_with_its_bases_name_on_the_hub(tmp_path, hub, capsys):
    (tmp_path / "base").mkdir()
    folder = finished(tmp_path / "a", base="ab", adapter=str(tmp_path / "base"))
    assert main(["push", str(folder), "org/model"]) == 2
    assert "give its Hub name with --base" in capsys.readouterr().err
    assert main(["push", str(folder), "org/model", "--base", "org/base"]) == 0
    assert json.loads(hub.files["adapter_config.json"])["base_model_name_or_path"] == "org/base"


@pytest.mark.parametrize(
    ("repo", "role", "token", "offline", "said"),
    [
        ("model", "write", "hf_test", False, "must be of the form ORG/NAME"),
        ("org/my model", "write", "hf_test", False, "repository=org/my model: "),
        ("org/model", "write", "hf_test", True, "HF_HUB_OFFLINE is set"),
        ("org/model", "write", None, False, "needs a token that may write"),
        ("org/model", "read", "hf_test", False, "this one may only read"),
    ],
)
def test_what_would_make_a_push_fail_is_said_first(
    tmp_path, hub, monkeypatch, capsys, repo, role, token, offline, said
):
    hub.role = role
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    assert main(["push", str(tmp_path), repo]) == 2
    assert said in capsys.readouterr().err
