from __future__ import annotations

from pathlib import Path

import pytest

from serving.settings import Settings, SettingsError, load


def test_everything_has_a_default() -> None:
    settings = load()
    assert settings.models[0].source == "embedded"
    assert settings.http.host == "127.0.0.1"


def test_a_file_and_overrides(tmp_path: Path) -> None:
    file = tmp_path / "serving.yaml"
    file.write_text("http: {port: 9000}\nengine: {replicas: 3}\nmodels: [{name: a}, {name: b}]\n")
    settings = load(file, ["http.port=9001", "models.1.source=/m", "engine.profile.step=0.5"])
    assert (settings.http.port, settings.engine.replicas, settings.engine.profile.step) == (9001, 3, 0.5)
    assert [(model.name, model.source) for model in settings.models] == [("a", "embedded"), ("b", "/m")]


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("engine.dtpe=auto", "engine.dtpe: unknown key, did you mean 'dtype'?"),
        ("htp.port=1", "htp: unknown key, did you mean 'http'?"),
        ("models.0.enginee=1", "models.0.enginee: unknown key, did you mean 'engine'?"),
        ("models.0.engine.dtpe=auto", "models.0.engine.dtpe: unknown key, did you mean 'dtype'?"),
        ("engine.replicas=-1", "engine.replicas: Input should be greater than or equal to 0 (got -1)"),
        ("engine.dtype=int3", "engine.dtype:"),
        ("limits.nesting=deep", "limits.nesting:"),
        ("models.x.name=a", "models: "),
        ("http.port", "an override has the form a.b=value"),
        ("http.port.x=1", "http.port.x"),
    ],
)
def test_mistakes_are_named(override: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(None, ["http.port=8000", override] if override.startswith("http.port.") else [override])
    assert says in str(caught.value)
    assert "too_short" not in str(caught.value)


def test_all_mistakes_are_listed() -> None:
    with pytest.raises(SettingsError) as caught:
        load(None, ["engine.dtpe=1", "http.port=0", "nope=1"])
    assert len(str(caught.value).splitlines()) == 3


def test_a_model_overrides_the_common_engine() -> None:
    settings = load(None, ["engine.dtype=float32", "models.0.engine.profile.step=1", "models.0.engine.replicas=2"])
    engine = settings.engine_of(settings.models[0])
    assert (engine.dtype, engine.profile.step, engine.replicas) == ("float32", 1.0, 2)
    assert engine.profile.prefill_rate == settings.engine.profile.prefill_rate


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "serving.yaml"
    file.write_text("http: [")
    with pytest.raises(SettingsError, match=r"serving\.yaml"):
        load(file)
    with pytest.raises(SettingsError, match=r"no\.yaml"):
        load(tmp_path / "no.yaml")


def test_settings_are_frozen_and_have_a_schema() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().http.port = 1  # type: ignore[misc]
    schema = Settings.model_json_schema()
    assert schema["additionalProperties"] is False
    assert "Loopback" in schema["$defs"]["HttpSettings"]["properties"]["host"]["description"]
