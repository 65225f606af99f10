"""Passwords in URLs reach no file and no message."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from momkd_ray import storage
from momkd_ray.config.load import Config, load_config
from momkd_ray.credentials import has_credentials, redact
from momkd_ray.errors import InputError
from momkd_ray.progress import ProgressReporter

SECRET = "s3cr3t!pw"
PLAIN = st.text("abcdefghij0123456789-_.!", min_size=1, max_size=12)


@given(st.sampled_from(["http", "https", "s3", "postgresql+psycopg2"]), PLAIN, PLAIN, PLAIN)
def test_only_credentials_are_hidden(scheme: str, user: str, password: str, host: str) -> None:
    url = f"{scheme}://{host}/some/key@version"
    assert redact(url) == url
    assert not has_credentials(url)
    for credentials in (f"{user}:{password}", password, f"{user}:"):
        text = f"cannot reach {scheme}://{credentials}@{host}/key: timed out"
        assert has_credentials(text)
        assert redact(text) == f"cannot reach {scheme}://***@{host}/key: timed out"


@pytest.mark.parametrize(
    ("override", "cure"),
    [
        (f"watch.mlflow=http://user:{SECRET}@mlflow:5000", r"MLFLOW_TRACKING_URI"),
        (f"store.uri=s3://key:{SECRET}@bucket/bags", r"s3://bucket/key.*AWS_SECRET_ACCESS_KEY"),
        (f"run.dir=s3://{SECRET}@bucket/run", r"AWS_PROFILE"),
        (f"features.dir=https://{SECRET}@host/features", r"leave them out"),
    ],
)
def test_a_configuration_with_a_password_is_refused_without_printing_it(
    tiny_config: Config, tmp_path: Path, override: str, cure: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(tiny_config.to_yaml())
    with pytest.raises(InputError, match=cure) as refused:
        load_config(path, [override])
    assert SECRET not in str(refused.value)
    assert override.partition("=")[0] in str(refused.value)


def test_a_location_with_a_password_is_refused_without_printing_it() -> None:
    with pytest.raises(InputError, match=r"s3://\*\*\*@bucket/x.*AWS_SECRET_ACCESS_KEY") as refused:
        storage.read_bytes(f"s3://key:{SECRET}@bucket/x")
    assert SECRET not in str(refused.value)


def test_the_command_line_prints_no_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from momkd_ray.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["predict", "--model", f"s3://k:{SECRET}@bucket/model", "--features", str(tmp_path), "--out", "p.csv"])
    captured = capsys.readouterr()
    assert ended.value.code == 1
    assert "s3://***@bucket" in captured.err
    assert SECRET not in captured.out + captured.err


def test_progress_messages_print_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressReporter() as progress:
        progress.info(f"MLflow at http://user:{SECRET}@mlflow:5000 is away")
    assert "http://***@mlflow:5000" in capsys.readouterr().err
