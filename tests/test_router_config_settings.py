"""The configuration: sources and their order, spellings, forms, bounds, cross checks, and its page.

`python -m tests.test_router_config_settings` writes the reference in docs/configuration.md and the chart's schema anew
from the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo

from indexer.errors import IndexerError
from indexer.events import BlockStored
from router.config import values as forms
from router.config.reading import load, parse_model, parse_pod, parse_policy
from router.config.settings import MODES, Config
from router.config.sources import FILE_BYTES_MAX, known_keys, section_of, spelling
from router.config.tokens import PROFILES
from router.errors import ConfigError
from router.process import _front
from router.service import Service
from tests.fakes.chart_schema import FILE, chart_schema, write_schema
from tests.fakes.limits import serving_limits, upstream_limits

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "configuration.md"
MARK = "<!-- From here on the page is made from the model: python -m tests.test_router_config_settings -->\n"


def from_yaml(tmp_path: Path, text: str, environ: dict[str, str] | None = None, **flags: object) -> Config:
    """The configuration of a file with `text`."""
    file = tmp_path / "warmroute.yaml"
    file.write_text(text)
    dotted = {key.replace("__", "."): value for key, value in flags.items()}
    return load(str(file), environ or {}, dotted)


def refusal(tmp_path: Path, text: str, environ: dict[str, str] | None = None, **flags: object) -> str:
    """The one line with which `text` is refused, without the folder of the file."""
    with pytest.raises(ConfigError) as caught:
        from_yaml(tmp_path, text, environ, **flags)
    line = caught.value.message.replace(f"{tmp_path}/", "")
    assert "\n" not in line
    return line


# --- sources


def test_defaults_need_no_source() -> None:
    """Without file, variables and flags there is a whole configuration."""
    config = load(None, {"HOME": "/root"}, {})
    assert config == Config()
    assert (config.gateway.port, config.gateway.ops_port) == (8080, None)
    assert config.scoring.policy == "predicted-ttft"


def test_flags_beat_environment_beats_file_beats_defaults(tmp_path: Path) -> None:
    """Each source wins over those below it, key by key."""
    text = "gateway: {port: 1, requests_max: 2, host: file}\nupstream: {attempts_max: 5}"
    environ = {"WARMROUTE_GATEWAY__PORT": "2", "WARMROUTE_GATEWAY__HOST": "environment"}
    config = from_yaml(tmp_path, text, environ, gateway__port=3, gateway__requests_max=None)
    gateway = config.gateway
    assert (gateway.port, gateway.host, gateway.requests_max) == (3, "environment", 2)
    assert (config.upstream.attempts_max, config.upstream.connect_timeout) == (5, 2.0)


def test_lists_are_replaced_as_a_whole(tmp_path: Path) -> None:
    """`--pod` flags stand in for the file's pods; they are not added to them."""
    text = "discovery: {static: [{name: a, address: 'http://a'}, {name: b, address: 'http://b'}]}"
    config = from_yaml(tmp_path, text, discovery__static=[parse_pod("name=c,address=http://c:80")])
    assert [pod.name for pod in config.discovery.static] == ["c"]


def test_environment_holds_json_and_null() -> None:
    """Lists and sections are JSON in a variable; a key of a section given so still wins; `null` is null."""
    environ = {
        "WARMROUTE_MODELS": '[{"name": "m", "aliases": ["n"]}]',
        "WARMROUTE_GATEWAY": '{"port": 1, "opsPort": 2}',
        "WARMROUTE_GATEWAY__OPS_PORT": "null",
        "WARMROUTE_PREFIX_STORE_CONFIG__POD_MAPPING_TTL": "45s",
        "WARMROUTE_PREFIXSTORECONFIG__MAXPODSETSPERBLOCK": "7",
    }
    config = load(None, environ, {})
    assert (config.models[0].name, config.models[0].aliases) == ("m", ("n",))
    assert (config.gateway.port, config.gateway.ops_port) == (1, None)
    store = config.prefix_store_config
    assert (store.pod_mapping_ttl, store.max_pod_sets_per_block) == (45.0, 7)


def test_kubernetes_service_links_are_no_settings() -> None:
    """The variables that Kubernetes makes for Services named warmroute and warmroute-ops are passed over."""
    links = {
        "WARMROUTE_PORT": "tcp://10.0.0.1:80", "WARMROUTE_SERVICE_HOST": "10.0.0.1",
        "WARMROUTE_SERVICE_PORT_HTTP": "80", "WARMROUTE_PORT_80_TCP_ADDR": "10.0.0.1",
        "WARMROUTE_OPS_PORT": "tcp://10.0.0.2:9090", "WARMROUTE_OPS_PORT_9090_TCP": "tcp://10.0.0.2:9090",
    }  # fmt: skip
    assert load(None, links, {}) == Config()
    with pytest.raises(ConfigError, match="did you mean WARMROUTE_GATEWAY__PORT"):
        load(None, {"WARMROUTE_GATEWAY_PORT": "9000"}, {})


def test_what_says_where_a_gateway_is_is_no_setting() -> None:
    """Who has told the examples where to ask can still start a gateway; a key that would be forgotten is refused."""
    assert load(None, {"WARMROUTE_URL": "http://a:8080", "WARMROUTE_OPS_URL": "http://a:9090"}, {}) == Config()
    with pytest.raises(ConfigError, match="WARMROUTE_GATEWAY__OPERATOR_KEY"):
        load(None, {"WARMROUTE_OPERATOR_KEY": "secret"}, {})


def test_json_file_is_read(tmp_path: Path) -> None:
    """A file that ends in .json is JSON, tabs and all."""
    file = tmp_path / "warmroute.json"
    file.write_text(json.dumps({"gateway": {"port": 9000}}, indent="\t"))
    assert load(str(file), {}, {}).gateway.port == 9000


def test_empty_file_and_empty_sections_are_defaults(tmp_path: Path) -> None:
    """A file or section of which all is commented out changes nothing."""
    assert from_yaml(tmp_path, "# nothing\n") == Config()
    assert from_yaml(tmp_path, "gateway:\ndiscovery:\n  static:\nmodels:\n") == Config()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [", "warmroute.yaml: line 1: expected the node content"),
        ("- 1", "warmroute.yaml: should be a mapping"),
        ("gateway: 5", "warmroute.yaml: gateway: should be a mapping"),
        ("models: {name: a}", "warmroute.yaml: models: should be a list"),
        ("gateway: {port: 1, port: 2}", "warmroute.yaml: port: given twice"),
        ("gateway: {ops_port: 1, opsPort: 2}", "warmroute.yaml: gateway.opsPort: given twice"),
        ("x: !!python/object:os.system {}", "warmroute.yaml: line 1: could not determine a constructor"),
        ("#" * (FILE_BYTES_MAX + 1), "warmroute.yaml: larger than"),
    ],
)
def test_broken_files_are_one_line(tmp_path: Path, text: str, line: str) -> None:
    """A file that is no configuration is refused by name and place."""
    assert refusal(tmp_path, text).startswith(line)


def test_missing_file_is_named() -> None:
    """A path without a file is refused."""
    with pytest.raises(ConfigError, match=r"^/nowhere\.yaml: can't be read: No such file"):
        load("/nowhere.yaml", {}, {})


def test_errors_name_the_source_that_said_it(tmp_path: Path) -> None:
    """A bad value is blamed on the source that gave it, not on the file below."""
    environ = {"WARMROUTE_GATEWAY__PORT": "x"}
    assert refusal(tmp_path, "gateway: {port: 1}", environ).startswith("WARMROUTE_GATEWAY__PORT: gateway.port: ")
    assert refusal(tmp_path, "gateway: {port: -1}").startswith("warmroute.yaml: gateway.port: ")
    assert refusal(tmp_path, "gateway: {}", None, gateway__port=-1).startswith("--port: should be")


# --- keys


def spellings(name: str) -> Iterator[str]:
    """A field's name as it is, in camelCase, and with dashes."""
    first, *rest = name.split("_")
    yield from {name, first + "".join(map(str.title, rest)), name.replace("_", "-")}


def fields_of(model: type[BaseModel], *above: str) -> Iterator[tuple[tuple[str, ...], FieldInfo]]:
    """Every field that is no list, with its path."""
    for name, field in model.model_fields.items():
        section, many = section_of(field.annotation)
        if section is None:
            yield (*above, name), field
        elif not many and not (field.default is None and not field.is_required()):  # a section that may be left out
            yield from fields_of(section, *above, name)


def test_every_key_may_be_written_in_either_case(tmp_path: Path) -> None:
    """snake_case and camelCase (and TTL in capitals) reach the same field, for each field of the model."""
    seen = 0
    for path, field in fields_of(Config):
        for last in {*spellings(path[-1]), field.serialization_alias or path[-1]}:
            value: Any = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
            for key in reversed([*path[:-1], last]):
                value = {key: value}
            assert from_yaml(tmp_path, json.dumps(value)) == Config(), (path, last)
            seen += 1
    assert seen > 60


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("gatway: {}", "gatway: unknown key; did you mean gateway?"),
        ("gateway: {prot: 1}", "gateway.prot: unknown key; did you mean gateway.port?"),
        ("port: 80", "port: unknown key; did you mean gateway.port?"),
        ("prefixStore: {}", "prefixStore: unknown key; did you mean prefixStoreConfig?"),
        ("prefixStoreConfig: {podMappingTL: 1}", "did you mean prefixStoreConfig.podMappingTTL?"),
        ("discovery: {static: [{adress: x}]}", "static.0.adress: unknown key; did you mean discovery.static.address?"),
        ("peobe: {zzz: 1}", "peobe: unknown key; did you mean probe?"),
        ("probe: {zzz: 1}", "; known here: interval, timeout, failures_max, look_interval, panic_share"),
    ],
)  # fmt: skip
def test_unknown_keys_name_the_nearest(tmp_path: Path, text: str, line: str) -> None:
    """A mistyped or misplaced key is refused with the key that was meant."""
    assert refusal(tmp_path, text).endswith(line)


# --- values


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30.0), ("500ms", 0.5), ("2m", 120.0), ("1h", 3600.0), ("1.5", 1.5), (0.25, 0.25), (7, 7), ("8e+02", 800)],
)  # fmt: skip
def test_durations(text: object, seconds: float) -> None:
    """Durations are seconds, or a number and its unit."""
    assert load(None, {}, {"probe.interval": text}).probe.interval == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MiB", 2**29), ("64KB", 64_000), ("1.5 kib", 1536), (4096, 4096), ("4096", 4096), ("5e+06", 5_000_000)],
)
def test_sizes(text: object, size: int) -> None:
    """Sizes are bytes, or a number and its unit: KB is 1000, KiB 1024."""
    assert load(None, {}, {"gateway.body_max": text}).gateway.body_max == size


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("gateway: {port: 70000}", "gateway.port: should be less than or equal to 65535, not 70000"),
        ("gateway: {port: true}", "gateway.port: should be a number"),
        ("gateway: {port: 80.5}", "gateway.port: should be a valid integer"),
        ("gateway: {body_max: 3x}", "gateway.body_max: unit 'x' is not one of B, KB"),
        ("gateway: {body_max: 1KB}", "gateway.body_max: should be greater than or equal to 1024, not 1000"),
        ("probe: {interval: soon}", "probe.interval: 'soon' is not a duration"),
        ("probe: {interval: 1d}", "probe.interval: unit 'd' is not one of ms, s, m, h"),
        ("probe: {interval: -1s}", "probe.interval: '-1s' is not a duration"),
        ("probe: {interval: .nan}", "probe.interval: should be a finite number"),
        ("probe: {interval: 1e999}", "probe.interval: should be a finite number"),
        ("index: {blocks_max: 1e999}", "index.blocks_max: should be a finite number"),
        ("scoring: {policy: wieghted}", "scoring.policy: should be 'predicted-ttft', 'weighted'"),
        ("prefix_store_config: {pod_mapping_ttl: 0}", "prefixStoreConfig.podMappingTTL: should be greater than 0"),
        ("models: [{name: a, vllm_version: 0.20}]", 'models.0.vllm_version: write it in quotes: "0.20"'),
        ("models: [{name: a}, {name: b, aliases: [a]}]", "models: the name or alias a is given twice"),
        ("models: [{tokenizer: pod}]", "models.0.name: is missing"),
        ("gateway: {port: 1, ops_port: 1}", "gateway: ops_port is the same as port"),
        (
            "gateway: {port: -1, requests_max: 0}",
            "gateway.port: should be greater than or equal to 0, not -1 (and 1 more)",
        ),
    ],
)  # fmt: skip
def test_bad_values_are_one_plain_line(tmp_path: Path, text: str, line: str) -> None:
    """A value that can't be used is refused with its key and the reason."""
    assert refusal(tmp_path, text).removeprefix("warmroute.yaml: ").startswith(line)


def test_a_policy_of_another_name_names_the_nearest(tmp_path: Path) -> None:
    """Wherever one may be given; if none is near, all."""
    for key in ("policy", "shadow"):
        assert refusal(tmp_path, f"scoring: {{{key}: wieghted}}").endswith(", not 'wieghted'; did you mean weighted?")
    assert parse_policy("bound", "bound") == "bound" and parse_policy("session") == "session"
    for name, hint in (("bond", "did you mean bound?"), ("x", "there are predicted-ttft, weighted, affinity")):
        with pytest.raises(ConfigError) as caught:
            parse_policy(name, "bound")
        assert caught.value.message.startswith(f"--policy: there is no policy '{name}': {hint}")


def pods(*each: str) -> str:
    """YAML of static pods."""
    return "discovery: {static: [" + ", ".join(f"{{{pod}}}" for pod in each) + "]}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (pods("name: a, address: 'ftp://x'"), "static.0.address: should be like http://10.0.0.7:8000"),
        (pods("name: a, address: 'http://x/v1'"), "static.0.address: should be like http://10.0.0.7:8000"),
        (pods("name: a, address: 'http://me:pw@x'"), "static.0.address: should be like http://10.0.0.7:8000"),
        (pods("name: a, address: 'http://x:99999'"), "Port out of range"),
        (pods("name: a, address: 'unix:run.sock'"), "should be like unix:/run/vllm.sock"),
        (pods("name: a, address: 'unix://host/run.sock'"), "should be like unix:/run/vllm.sock"),
        (pods("name: a, address: 'https://x', tls: {ca: f}"), "tls.ca: unknown key; did you mean"),
        (pods("name: a, address: 'https://x', tls: {cert_file: f}"), "cert_file and key_file go together"),
        (pods("name: a, address: 'http://x', tls: {ca_file: f}"), "tls is given for an address that is not https"),
        (pods("name: a, address: 'http://x', data_parallel_size: 9") + "\nindex: {pods_max: 8}", "there are 9 pods"),
        (pods("name: 'a b', address: 'http://x'"), "static.0.name: String should match pattern"),
        (pods("name: a, address: 'http://x', events: 'tcp://*:5557'"), "should name the pod's host and port"),
        (pods("name: a, address: 'http://x', events: 'http://x:1'"), "static.0.events: should be like tcp://"),
        (pods("name: a, address: 'http://x', replay: 'tcp://x:1'"), "replay is given without events"),
        (pods("name: a, address: 'http://x', events: 'tcp://x:65535', data_parallel_size: 2"), "end above 65535"),
        (pods("name: a, address: 'http://x', events: 'ipc:///x', data_parallel_size: 2"), "must be 1"),
        (pods("name: a, address: 'http://x', events: 'tcp://x:1', replay: 'tcp://x:2', data_parallel_size: 2"),
         "events and replay share a port or path"),
        (pods("name: a, address: 'http://x'", "name: a, address: 'http://y'"), "two pods are named a"),
        (pods("name: a, address: 'http://x'", "name: b, address: 'http://x/'"), "two pods have the address http://x"),
        (pods("name: a, address: 'http://x', events: 'tcp://h:5', data_parallel_size: 3",
              "name: b, address: 'http://y', events: 'tcp://h:7'"), "pods a and b share an events or replay endpoint"),
    ],
)  # fmt: skip
def test_pods_that_can_not_be(tmp_path: Path, text: str, line: str) -> None:
    """Addresses, endpoints, names and port ranges of pods are checked, each alone and among each other."""
    assert line in refusal(tmp_path, text)


BOUND = "events: {bind: 'tcp://*:5557'}\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (pods("name: a, address: 'http://x', topic: t"), "a: topic is given without events, and there is no events"),
        (BOUND + pods("name: a, address: 'http://x', topic: t, events: 'tcp://x:1'"), "has events of its own"),
        (BOUND + pods("name: a, address: 'http://x', topic: \"a\\nb\""), "static.0.topic: should be printable text"),
        (BOUND + pods("name: 'x:80', address: 'http://y'", "name: b, address: 'http://x'"),
         "b: its topic 'x:80' could be that of x:80, too"),
        (BOUND + pods("name: a, address: 'http://x', topic: t", "name: b, address: 'http://y', topic: t"),
         "b: its topic 't' could be that of a, too"),
        (BOUND + pods("name: a, address: 'http://x'", "name: b, address: 'http://y', topic: kv@a@m"),
         "b: its topic 'kv@a@m' could be that of a, too"),
        (pods("name: a, address: 'http://x', data_parallel_size: 2") + "\nevents: {bind: 'tcp://*:65535'}",
         "a: events.bind has no ports for 2 ranks"),
        (pods("name: a, address: 'http://x', data_parallel_size: 2") + "\nevents: {bind: 'ipc:///run/x'}",
         "a: events.bind has no ports for 2 ranks"),
        ("events: {bind: 'tcp://*:5557'}\ngateway: {workers: 2}", "events.bind goes with one worker"),
        ("events: {bind: 'tcp://*'}", "events.bind: "),
        ("events: {bind: 'tcp://*:0'}", "events.bind: should be like tcp://"),
        ("events: {bind: 'udp://*:1'}", "events.bind: should be like tcp://"),
        ("events: {reconnect_delay: 2s}", "events: reconnect_delay is longer than reconnect_delay_max"),
    ],
)  # fmt: skip
def test_bound_endpoints_that_can_not_be(tmp_path: Path, text: str, line: str) -> None:
    """At the bound endpoint every pod must be told from all others, and every rank have its port."""
    assert line in refusal(tmp_path, text)


def test_bound_endpoints_that_can_be(tmp_path: Path) -> None:
    """Pods are told by what they were given, else by their name or the host and port of their address."""
    text = pods(
        "name: a, address: 'http://x:8000', replay: 'tcp://x:1'",
        "name: b, address: 'http://[FD00::7]:8000'",
        "name: c, address: 'https://z', topic: 'kv@pod@m1'",
        "name: d, address: 'unix:/run/d', topic: 'kv@pod@m2'",
        "name: e, address: 'unix:/run/e'",
        "name: f, address: 'http://f', events: 'tcp://f:1'",
    )
    for bind in ("tcp://*:5557", "tcp://[::]:5557", "tcp://10.0.0.1:5557", "ipc:///run/events"):
        config = from_yaml(tmp_path, f"{text}\nevents: {{bind: '{bind}'}}")
        assert config.events.bind == bind
    claims = [pod.claims for pod in config.discovery.static]
    assert claims[:5] == [("a", "x:8000"), ("b", "[fd00::7]:8000"), ("kv@pod@m1",), ("kv@pod@m2",), ("e",)]


def test_pods_that_can_be(tmp_path: Path) -> None:
    """IPv6, Unix sockets, IPC feeds, and ranks side by side on one host."""
    text = pods(
        "name: a, address: 'http://[::1]:80/', events: 'tcp://[::1]:5557', data_parallel_size: 2",
        "name: '10.0.0.7:8000', address: 'unix:/run/vllm.sock', events: 'ipc:///run/events', replay: 'ipc:///run/replay'",
        "name: d, address: 'unix:///run/vllm-1.sock'",
        "name: c, address: 'https://c.example', tls: {serverName: c}, events: 'tcp://[::1]:5559', replay: 'tcp://[::1]:5560'",
    )
    static = from_yaml(tmp_path, text).discovery.static
    assert [pod.address for pod in static] == [
        "http://[::1]:80", "unix:/run/vllm.sock", "unix:/run/vllm-1.sock", "https://c.example"
    ]  # fmt: skip
    assert static[-1].tls.server_name == "c"


async def test_every_limit_has_a_key(tmp_path: Path) -> None:
    """What bounds connections to pods and from clients is what the configuration says; nothing keeps its default."""
    text = """
gateway: {header_max: 2KiB, header_count_max: 9, url_max: 300, header_timeout: 1s, body_max: 2KiB, body_timeout: 1s,
          body_rate_min: 1, bodies_max: 1MiB, send_timeout: 1s, keep_alive_timeout: 1s, requests_per_connection_max: 1,
          connections_max: 7, connections_per_client_max: 1, pipelined_max: 2, body_buffer_max: 5KiB, linger_time: 1s}
upstream: {connect_timeout: 1s, first_byte_timeout: 200ms, idle_timeout: 1s, total_timeout: 1s, keep_alive_idle: 1s,
           idle_connections_max: 3, connections_max: 4, response_header_max: 2KiB, response_buffer_max: 8KiB,
           response_whole_max: 6KiB}
index: {pods_max: 7}
""" + pods("name: a, address: 'http://x'")
    service = Service(from_yaml(tmp_path, text))
    upstream, serving = service.upstreams["a"].limits, _front(service).limits
    for given, default in ((upstream, upstream_limits()), (serving, serving_limits())):
        same = {name for name, value in asdict(default).items() if getattr(given, name) == value}
        assert not same
    assert (upstream.idle_max, upstream.head_bytes_max, upstream.whole_bytes_max) == (3, 2048, 6144)
    assert (serving.pipelined_max, serving.unread_bytes_max, serving.linger_s) == (2, 5120, 1.0)
    stored = BlockStored([1], None, np.arange(16, dtype=np.uint32), 16, "gpu")
    for number in range(2 * 7):  # twice as many as there may be at one time: those that left are swept late
        service.core.index.apply(("p", number), stored)
    with pytest.raises(IndexerError, match="room"):
        service.core.index.apply(("p", 14), stored)
    service.encoder.close()
    await service.pods.stop()


def test_pod_mappings_need_both_switches(tmp_path: Path) -> None:
    """The switch at the top level wins when it is off, and does not when it is on."""
    below = "prefixStoreConfig: {enablePodMappingCache: %s}\nenablePodMappingCache: %s"
    for top, inner in [(True, True), (True, False), (False, True), (False, False)]:
        config = from_yaml(tmp_path, below % (str(inner).lower(), str(top).lower()))
        assert config.pod_mappings_enabled == (top and inner)


def test_modes_set_what_is_not_given(tmp_path: Path) -> None:
    """In all sections; what is given wins, wherever it comes from. `auto` is as if nothing were said."""
    batch = from_yaml(tmp_path, "scoring: {mode: batch, beta: 2}\nadmission: {waitMax: 7s}")
    assert (batch.scoring.beta, batch.scoring.eviction, batch.scoring.request_cost) == (2.0, 8.0, 0.0)
    assert (batch.admission.wait_max, batch.admission.look_ahead, batch.admission.hold_max) == (7.0, 4.0, 600.0)
    assert from_yaml(tmp_path, "scoring: {mode: auto}").admission == Config().admission
    assert refusal(tmp_path, "scoring: {mode: stream}").endswith("did you mean streaming?")
    for mode in MODES:
        config = Config.model_validate({"scoring": {"mode": mode}})
        for section, settings in MODES[mode].items():
            assert {name: getattr(getattr(config, section), name) for name in settings} == settings


def test_configuration_is_frozen() -> None:
    """Nothing changes a configuration once it is read."""
    with pytest.raises(ValidationError):
        Config().gateway.port = 1


# --- files that the configuration names


def test_tokenizer_and_template_must_exist(tmp_path: Path) -> None:
    """A model's folder must hold tokenizer.json and its template must be a file; `pod` needs neither."""
    folder = ROOT / "tests" / "vectors" / "vllm-0.32.0" / "tokenizer"
    template = folder / "chat_template.jinja"
    found = from_yaml(tmp_path, f"models: [{{name: m, tokenizer: {folder}, chat_template: {template}}}]")
    assert found.models[0].tokenizer == str(folder)
    assert from_yaml(tmp_path, "models: [{name: m}]").models[0].tokenizer == "pod"
    assert "there is no /nowhere/tokenizer.json" in refusal(tmp_path, "models: [{name: m, tokenizer: /nowhere}]")
    assert "there is no file /nowhere" in refusal(tmp_path, "models: [{name: m, chat_template: /nowhere}]")


def test_operator_key_is_read_from_its_file_and_never_shown(tmp_path: Path) -> None:
    """The key of the file is the configuration's, whitespace at the ends cut; no text of ours holds it."""
    file = tmp_path / "key"
    file.write_text("s3cret-key\n")
    config = from_yaml(tmp_path, f"gateway: {{operator_key_file: {file}}}")
    assert config.gateway.operator_key == SecretStr("s3cret-key")
    assert "s3cret" not in repr(config) + config.model_dump_json()
    for content in (b"", b"two words", "schlüssel".encode(), b"\xff\xfe", b"k" * 5000):
        file.write_bytes(content)
        assert refusal(tmp_path, f"gateway: {{operator_key_file: {file}}}").startswith("gateway.operator_key_file:")
    both = refusal(tmp_path, f"gateway: {{operator_key: s3cret, operator_key_file: {file}}}")
    assert "keep one" in both and "s3cret" not in both
    for bad in ("[s3cret]", "'s3cret word'", "{a: s3cret}"):
        assert "s3cret" not in refusal(tmp_path, f"gateway: {{operator_key: {bad}}}")
    assert "s3cret" not in refusal(tmp_path, "gateway: {operator_key: s3cret: }")


# --- flags that describe a pod or a model


def test_parse_pod() -> None:
    """`--pod` takes the fields of a static pod."""
    pod = parse_pod("name=pod-0,address=http://h:1,events=tcp://h:2,replay=tcp://h:4,data_parallel_size=2")
    assert (pod.name, pod.address, pod.events, pod.replay) == ("pod-0", "http://h:1", "tcp://h:2", "tcp://h:4")
    assert pod.data_parallel_size == 2
    assert parse_pod("name=p,address=unix:/a,b").address == "unix:/a,b"
    tls = parse_pod('name=p,address=https://h,tls={"ca_file":"a,b","verify":false}').tls
    assert (tls.ca_file, tls.verify) == ("a,b", False)


def test_parse_model() -> None:
    """`--model` takes the fields of a model; lists and mappings are JSON; versions keep their zeros."""
    model = parse_model('name=m,tokenizer=pod,aliases=["a","b"],chat_template_kwargs={"x":1,"y":2},vllmVersion=0.20')
    assert (model.aliases, model.chat_template_kwargs, model.version) == (("a", "b"), {"x": 1, "y": 2}, (0, 20))
    assert parse_model("name=m,vllm_version=v0.11.2.post2").version == (0, 11)
    assert parse_model("name=m,vllm_version=0.20rc1").version == (0, 20)
    assert parse_model("name=m").version is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("pod-0", "--pod: 'pod-0' is not key=value"),
        ("name=a", "--pod: address: is missing"),
        ("name=a,name=b", "--pod: name: given twice"),
        ("name=a,adress=http://x", "--pod: adress: unknown key; did you mean address?"),
        ("name=a,address=x", "--pod: address: should be like http://10.0.0.7:8000"),
    ],
)
def test_parse_pod_refuses(text: str, line: str) -> None:
    """A `--pod` that can't be used is refused as a file would be."""
    with pytest.raises(ConfigError) as caught:
        parse_pod(text)
    assert caught.value.message.startswith(line)


# --- the page and the examples


def kind_of(field: FieldInfo) -> str:
    """A field's type in an operator's words."""
    every = [getattr(part, "func", None) for part in (*field.metadata, *nested_metadata(field.annotation))]
    if forms.duration in every or forms.size in every:
        return "duration" if forms.duration in every else "size"
    annotation = field.annotation
    annotation = next((part for part in get_args(annotation) if get_origin(part) is Literal), annotation)
    if get_origin(annotation) is Literal:
        return " \\| ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) is tuple:
        return "list of sections" if section_of(annotation)[0] else "list of strings"
    names = {int: "integer", float: "number", bool: "true or false", str: "string", SecretStr: "string"}
    return next((name for kind, name in names.items() if kind in flat_types(annotation)), "mapping")


def flat_types(annotation: Any) -> set[Any]:
    """The plain types inside a union or Annotated."""
    if get_origin(annotation) is dict:
        return {dict}
    inner = get_args(annotation)
    return set().union(*map(flat_types, inner)) if inner else {annotation}


def nested_metadata(annotation: Any) -> tuple[Any, ...]:
    """Metadata of Annotated members of a union."""
    return tuple(part for option in get_args(annotation) for part in getattr(option, "__metadata__", ()))


def bounds_of(field: FieldInfo, show: Any) -> str:
    """The numeric bounds of a field, from `gt`/`ge` and `le`."""
    found = {name: getattr(part, name) for part in field.metadata for name in ("gt", "ge", "le") if hasattr(part, name)}
    words = [f"above {show(found['gt'])}"] if "gt" in found else [f"from {show(found['ge'])}"] if "ge" in found else []
    return " ".join(words + ([f"to {show(found['le'])}"] if "le" in found else []))


def shown(kind: str, value: Any) -> str:
    """A value as one would write it in the file."""
    if kind == "size":
        unit = next((unit for unit in ("GiB", "MiB", "KiB") if value % forms.BYTES[unit.lower()] == 0), "")
        return f"{value // forms.BYTES[unit.lower()]}{unit}"
    if kind == "duration" and value == 0:
        return "0s"
    if kind == "duration":
        unit = next(unit for unit in ("h", "m", "s", "ms") if (value / forms.SECONDS[unit]) % 1 < 1e-9)
        unit = "s" if 60 <= value <= 120 else unit
        return f"{value / forms.SECONDS[unit]:g}{unit}"
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def row(model: type[BaseModel], name: str) -> str:
    """A field's line in its section's table."""
    field = model.model_fields[name]
    kind = kind_of(field)
    default = "required" if field.is_required() else f"`{shown(kind, field.get_default(call_default_factory=True))}`"
    bounds = bounds_of(field, lambda value: shown(kind, value))
    assert field.description, f"{model.__name__}.{name} has no description"
    return f"| `{spelling(model, name)}` | {kind}{f', {bounds}' if bounds else ''} | {default} | {field.description} |"


def reference(model: type[BaseModel] = Config, path: str = "") -> str:
    """The reference of a section and of those in it, as Markdown."""
    below = {name: section_of(field.annotation) for name, field in model.model_fields.items()}
    rows = [
        row(model, name)
        for name, (section, many) in below.items()
        if section is None or many or model.model_fields[name].default is None
    ]
    text = f"\n## {f'`{path}`' if path else 'Top level'}\n\n{model.__doc__}\n"
    if rows:
        text += "\n| key | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
    for name, (section, many) in below.items():
        if section is not None:
            key = spelling(model, name) + ("[]" if many else "")
            text += reference(section, f"{path}.{key}".lstrip("."))
    return text


def test_page_tells_every_field() -> None:
    """docs/configuration.md is what the model says: keys, types, bounds, defaults, meanings."""
    head, mark, body = PAGE.read_text(encoding="utf-8").partition(MARK)
    assert mark, "the page has lost its mark"
    assert body == reference(), "run: python -m tests.test_router_config_settings"
    assert all(
        f"`{key.rpartition('.')[2]}" in body or f".{key.rpartition('.')[2]}`" in body for key in known_keys(Config)
    )
    assert "tokenizer.json" in head


def test_charts_schema_tells_every_field() -> None:
    """The chart's schema holds every key, in both spellings, with its bounds; none that the chart's values give."""
    assert FILE.read_text(encoding="utf-8") == chart_schema(), "run: python -m tests.test_router_config_settings"
    definitions = json.loads(chart_schema())["$defs"]
    gateway = definitions["GatewayConfig"]["properties"]
    assert gateway["port"] is gateway["opsPort"] is gateway["api_keys"] is False
    assert gateway["keep_alive_timeout"] == gateway["keepAliveTimeout"] != {}
    assert "podMappingTTL" in definitions["PrefixStoreConfig"]["properties"]


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles(profile: str, tmp_path: Path) -> None:
    """A profile sets what is not given; what is given wins; the page tells all; the default's is the default."""
    config = from_yaml(tmp_path, f"prefixStoreConfig: {{profile: {profile}}}").prefix_store_config
    assert config.model_dump(include=set(PROFILES[profile])) == PROFILES[profile]
    text = f"prefixStoreConfig: {{profile: {profile}, podMappingTTL: 7s}}"
    own = from_yaml(tmp_path, text, {"WARMROUTE_PREFIX_STORE_CONFIG__BYTES_MAX": "3MiB"}).prefix_store_config
    assert (own.pod_mapping_ttl, own.bytes_max, own.piece_bytes) == (7.0, 3 * 2**20, config.piece_bytes)
    (line,) = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith(f"| `{profile}` |")]
    told = [
        forms.size(cell) if place < 2 else forms.duration(cell) for place, cell in enumerate(line.split(" | ")[2:5])
    ]
    assert told == [config.bytes_max, config.piece_bytes, config.pod_mapping_ttl]
    assert line.endswith(f"| {config.max_pod_sets_per_block} |")
    default = Config().prefix_store_config
    assert (config == default) is (profile == default.profile)


def test_unknown_profile(tmp_path: Path) -> None:
    """It is refused, and the known ones are named."""
    line = refusal(tmp_path, "prefixStoreConfig: {profile: chats}")
    assert "profile" in line and all(profile in line for profile in PROFILES)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_examples_are_configurations(path: Path, tmp_path: Path) -> None:
    """Each example file is read without a complaint, with its tokenizer folders put where the tests have them."""
    folder = ROOT / "tests" / "vectors" / "vllm-0.32.0" / "tokenizer"
    text = path.read_text(encoding="utf-8").replace("/models/tiny-qwen", str(folder))
    assert from_yaml(tmp_path, text).discovery.static


def write_page() -> None:
    """Put the reference after the mark in the page."""
    head, mark, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    PAGE.write_text(head + mark + reference(), encoding="utf-8")


if __name__ == "__main__":
    write_page()
    write_schema()
