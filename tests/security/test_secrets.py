"""Secrets in the environment, in URLs and in comments: none is found in a run folder, a report, a log or on the terminal."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

import ftkit
from ftkit.cli.failure import guarded
from ftkit.errors import DataError, Problem, RecipeError
from ftkit.secrets import redacted, without_credentials
from tests.security.conftest import Command

# Put together here, so that no scanner takes this file for a leak.
ENVIRONMENT = {
    "HF_TOKEN": "hf_" + "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0eF3h",
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
    "AWS_ACCESS_KEY_ID": "AKIA" + "IOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEXAMPLE" + "token0123456789==",
    "MLFLOW_TRACKING_PASSWORD": "s3cret-of-the-tracker",
}
PASSWORD, TOKEN = "pa55word-of-mine", "t0ken-of-mine-123"
LOGIN_URL = f"https://user:{PASSWORD}@mirror.example.org/rows.csv"
TOKEN_URL = f"https://example.org/rows.csv?version=2&token={TOKEN}#top"
SIGNED_URL = f"https://bucket.example.org/x?X-Amz-Credential={TOKEN}&X-Amz-Signature={TOKEN}&part=1"
SECRETS = (*ENVIRONMENT.values(), PASSWORD, TOKEN)


@pytest.fixture(autouse=True)
def secrets_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_ENDPOINT", f"https://user:{PASSWORD}@mirror.example.org")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://user:{PASSWORD}@tracker.example.org")


def leaks(text: str | bytes) -> list[str]:
    content = text if isinstance(text, bytes) else text.encode(errors="surrogateescape")
    return [secret for secret in SECRETS if secret.encode() in content]


def test_nothing_of_a_run_holds_a_secret(finished: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    comments = "".join(f"# {text}\n" for text in (*ENVIRONMENT.values(), LOGIN_URL, TOKEN_URL, SIGNED_URL))
    (tmp_path / "recipe.yaml").write_text(comments + (finished / "recipe.yaml").read_text() + "trackers: [tensorboard]\n")
    run = tmp_path / "run"
    arguments = ("--output", run, "--junit", tmp_path / "junit.xml", "--baseline", tmp_path / "x.json", "train.max_steps=1")
    said = [
        command("train", tmp_path / "recipe.yaml", *(each for each in arguments if each not in ("--baseline", tmp_path / "x.json")))
    ]
    assert said[0].code == 0, said[0].said
    said += [command("evaluate", run), command("predict", run, "--text", "w1"), command("env"), command("env", "--json")]
    said += [command("predict", run, "--input", url) for url in (LOGIN_URL, TOKEN_URL, SIGNED_URL)]
    said += [command("train", tmp_path / "recipe.yaml", "--output", run, "--resume")]
    assert not [leak for ended in said for leak in leaks(ended.said)]
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path != tmp_path / "recipe.yaml"]
    assert {"results.json", "lock.json", "plan.yaml", "recipe.yaml", "log.txt", "README.md", "junit.xml", "summary.md"} <= {
        path.name for path in files
    }
    assert any("tfevents" in path.name for path in files)
    assert not [(path, leak) for path in files for leak in leaks(path.read_bytes())]
    kept = (run / "recipe.yaml").read_text()
    assert "https://***@mirror.example.org/rows.csv" in kept
    assert "https://example.org/rows.csv?version=2&token=***#top" in kept


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model", LOGIN_URL),
        ("model", ENVIRONMENT["HF_TOKEN"]),
        ("data.train", TOKEN_URL),
        ("data.train", SIGNED_URL),
        ("output", f"runs/{ENVIRONMENT['WANDB_API_KEY']}"),
        ("data.columns", json.dumps({LOGIN_URL: "x"})),
        (LOGIN_URL, "1"),
    ],
)
def test_recipes_that_hold_a_secret_are_refused_without_saying_it(
    key: str, value: str, finished: Path, tmp_path: Path, command: Command
) -> None:
    recipe = tmp_path / "recipe.yaml"
    if key == LOGIN_URL:
        recipe.write_text((finished / "recipe.yaml").read_text() + f'"{key}": {value}\n')
        overrides: tuple[str, ...] = ()
    else:
        recipe.write_text((finished / "recipe.yaml").read_text())
        overrides = (f"{key}={value if value.startswith('{') else json.dumps(value)}",)
    ended = command("train", recipe, "--output", tmp_path / "run", *overrides)
    assert ended.code == 2
    assert "holds a password or a token" in ended.err
    assert "***" in ended.err
    assert not leaks(ended.said)
    assert not (tmp_path / "run").exists()
    with pytest.raises(RecipeError) as caught:
        ftkit.load_recipe(recipe, overrides)
    assert not leaks(str(caught.value))


def test_reports_of_internal_errors_hold_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("FTKIT_DEBUG", raising=False)

    def fail() -> int:
        raise LookupError(f"{LOGIN_URL} {ENVIRONMENT['HF_TOKEN']} {ENVIRONMENT['AWS_SECRET_ACCESS_KEY']}")

    assert guarded(fail, as_json=False) == 1
    captured = capsys.readouterr()
    reports = list(tmp_path.glob("ftkit-traceback-*"))
    assert len(reports) == 1
    assert "LookupError" in captured.err
    assert not leaks(captured.err + captured.out + reports[0].read_text())


def test_problems_hold_no_secret_in_any_part() -> None:
    error = DataError(Problem(message=LOGIN_URL, place=TOKEN_URL, key=SIGNED_URL, hint=ENVIRONMENT["HF_TOKEN"]))
    assert not leaks(str(error))
    assert not leaks(json.dumps([problem.to_json() for problem in error.problems]))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:p@ss@host/x", "https://***@host/x"),
        ("Looked in /data/https:/user:pass@host/x?token=abc", "Looked in /data/https:/***@host/x?token=***"),
        ("https://only-a-token@host", "https://***@host"),
        ("postgresql+asyncpg://u:p@localhost:5432/db?sslkey=x", "postgresql+asyncpg://***@localhost:5432/db?sslkey=x"),
        (
            "s3://key:secret@bucket/a and https://x.org/?api_key=abc&page=2",
            "s3://***@bucket/a and https://x.org/?api_key=***&page=2",
        ),
        ("https://x.org/?access_token=abc;sig=def", "https://x.org/?access_token=***;sig=***"),
        ("mail me@host or see https://x.org/@user/post?page=1", "mail me@host or see https://x.org/@user/post?page=1"),
        ("monkey=banana token=3 ?key=value outside of a URL", "monkey=banana token=3 ?key=value outside of a URL"),
        ("rows.csv#500, a@b:c, http://host:8080/x?monkey=1", "rows.csv#500, a@b:c, http://host:8080/x?monkey=1"),
        ("ghp_" + "a1B2" * 9, "***"),
        ("hf_short and sk-short and AKIA", "hf_short and sk-short and AKIA"),
    ],
)
def test_what_is_hidden_and_what_is_not(text: str, shown: str) -> None:
    assert without_credentials(text) == shown
    assert without_credentials(shown) == shown


def test_plain_words_and_paths_of_the_environment_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "SORT_KEY": "accuracy-of-all",
        "SSH_KEY": str(tmp_path),
        "MAX_TOKEN": "123456789012345",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
        assert redacted(f"is {value} here") == f"is {value} here"
    assert sys.executable in redacted(sys.executable)
    assert os.getcwd() in redacted(os.getcwd())
