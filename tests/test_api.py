"""The public names: imported when used, typed, and light to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import momkd_ray

HEAVY = "{'torch', 'ray', 'pandas', 'sklearn', 'pyarrow', 'pydantic'}"


def test_import_takes_neither_torch_nor_ray_and_names_come_when_used() -> None:
    code = (
        "import sys, momkd_ray\n"
        f"assert not {HEAVY} & set(sys.modules), set(sys.modules) & {HEAVY}\n"
        "assert callable(momkd_ray.load_config)\n"
        "assert not {'torch', 'ray'} & set(sys.modules)\n"
        "assert momkd_ray.MoMKD.__name__ == 'MoMKD'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", momkd_ray.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(momkd_ray, name).__doc__
    assert name in dir(momkd_ray)


def test_packages_do_not_hide_public_names() -> None:
    import momkd_ray.crossval.cross_validate
    import momkd_ray.predict.ensemble

    assert not {path.parent.name for path in Path(momkd_ray.__file__).parent.glob("*/__init__.py")} & {
        *momkd_ray.__all__
    }
    assert callable(momkd_ray.cross_validate)
    assert callable(momkd_ray.predict_slides)
    assert (Path(momkd_ray.__file__).parent / "py.typed").exists()
    with pytest.raises(AttributeError, match="crossvalidate"):
        _ = momkd_ray.crossvalidate
