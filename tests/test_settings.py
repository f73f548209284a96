from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def test_a_wrong_item_is_one_mistake() -> None:
    with pytest.raises(SettingsError) as caught:
        load(None, ["models.0.enginee=1"])
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(SettingsError, match="models: "):
        load(None, ["models=[]"])


def test_mistakes_of_every_model_are_listed() -> None:
    with pytest.raises(SettingsError) as caught:
        load(
            None, ["models.0.engine.dtpe=1", "models.1.name=b", "models.1.engine.replicas=-1", "models.1.engine.seed=x"]
        )
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "models.0.engine.dtpe",
        "models.1.engine.replicas",
        "models.1.engine.seed",
    ]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["models.0.name=a", "models.1.name=a"], "models.1.name"),
        (["models.0.source=/m", "models.1.source=/m"], "models.1.name"),
        (["models.0.name=/m", "models.1.source=/m"], "models.1.name"),
        (["models.0.name=a", "models.1.name=b", "models.1.aliases=[c, a]"], "models.1.aliases.1"),
    ],
)
def test_ids_are_unique(overrides: list[str], key: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(None, overrides)
    assert str(caught.value).startswith(f"{key}: ")
    assert "models.0" in str(caught.value)


def test_one_source_under_two_names() -> None:
    settings = load(None, ["models.0.source=/m", "models.1.source=/m", "models.1.name=b", "models.1.aliases=[b2]"])
    assert len(settings.models) == 2


def test_lists_grow_by_one_position() -> None:
    assert [model.name for model in load(None, ["models.0.name=a", "models.1.name=b"]).models] == ["a", "b"]
    with pytest.raises(SettingsError, match=r"models\.2\.name: '2' is not a position in a list of 1"):
        load(None, ["models.0.name=a", "models.2.name=b"])


def test_values_are_yaml() -> None:
    settings = load(None, ["models.0.aliases=[x, y]", "engine.extra={swap: 1}", "http.haproxy=true", "ray.secret='1'"])
    assert settings.models[0].aliases == ("x", "y")
    assert settings.engine.extra == {"swap": 1}
    assert (settings.http.haproxy, settings.ray.secret) == (True, "1")
    with pytest.raises(SettingsError, match=r"engine\.extra: "):
        load(None, ["engine.extra=[1"])


def test_the_last_override_counts() -> None:
    assert load(None, ["http.port=1", "http.port=2"]).http.port == 2


@pytest.mark.parametrize("content", ["", "# nothing\n", "{}"])
def test_an_empty_file_is_all_defaults(tmp_path: Path, content: str) -> None:
    file = tmp_path / "serving.yaml"
    file.write_text(content)
    assert load(file) == Settings()


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "serving.yaml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match=r"serving\.yaml"):
        load(file)


@pytest.mark.parametrize("content", ["[]", "5", "text"])
def test_a_file_of_another_shape(tmp_path: Path, content: str) -> None:
    file = tmp_path / "serving.yaml"
    file.write_text(content)
    with pytest.raises(SettingsError, match="must be a mapping"):
        load(file)


def test_haproxy_stands_before_several_fronts() -> None:
    assert not load().http.behind_haproxy
    assert load(None, ["http.fronts=2"]).http.behind_haproxy
    assert load(None, ["http.haproxy=true"]).http.behind_haproxy
    assert not load(None, ["http.fronts=2", "http.haproxy=false"]).http.behind_haproxy


def every_key(section: dict[str, Any], schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, key in section["properties"].items():
        below = key.get("$ref") or key.get("items", {}).get("$ref")
        if below:
            yield from every_key(schema["$defs"][below.rsplit("/", 1)[1]], schema, f"{path}{name}.")
        else:
            yield f"{path}{name}", key


def test_every_key_of_the_schema_has_a_type_and_a_default() -> None:
    schema = Settings.model_json_schema()
    keys = dict(every_key(schema, schema))
    assert {"http.port", "models.source", "engine.profile.step", "log_level"} <= set(keys)
    for name, key in keys.items():
        assert "default" in key, name
        assert key.keys() & {"type", "anyOf", "enum"}, name


def test_a_model_overrides_the_common_engine() -> None:
    common = ["engine.dtype=float32", "engine.replicas=3", "engine.profile.prefill_rate=7"]
    settings = load(None, [*common, "models.0.engine.profile.step=1", "models.0.engine.replicas=2"])
    engine = settings.engine_of(settings.models[0])
    assert (engine.dtype, engine.profile.step, engine.replicas) == ("float32", 1.0, 2)
    assert (engine.profile.prefill_rate, settings.engine.replicas) == (7, 3)


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
