"""The command line: help with examples, one plain line for what is wrong, `score` and `check` against real pods."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from router.cli import main
from tests.fakes.command import file_of, run
from tests.fakes.processes import BLOCK, MODEL, PLAIN, ROOT, TOKENIZER, GatewayProcess, PodProcess, gateway, pods

OTHER_TOKENIZER = TOKENIZER.parent.parent / "vllm-0.20.2" / "tokenizer"


@pytest.fixture(scope="module")
def fleet() -> Iterator[list[PodProcess]]:
    """A pod, and one with two ranks of another version."""
    old = PodProcess("pod-1", options=("--vllm-version", "0.20.2"), ranks=2)
    with pods(PodProcess("pod-0"), old) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def served(fleet: list[PodProcess], tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """The gateway in front of them."""
    with gateway(tmp_path_factory.mktemp("gateway"), [pod.configured for pod in fleet]) as served:
        yield served


def free_port() -> int:
    """One on which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


SCREEN = (40, 80)


@pytest.mark.parametrize("command", sorted(main.commands))
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(command: str, flag: str, tmp_path: Path) -> None:
    """Every command explains itself by its name, with an example, on one screen; a folder here changes nothing."""
    if command == "simulate":  # becomes another program
        (tmp_path / "simulator").mkdir()
        (tmp_path / "simulator" / "__main__.py").write_text("print('somebody else')")
        line = [sys.executable, "-c", "from router.cli import main; main()", "simulate", flag]
        told = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    else:
        result = run(command, flag)
        assert result.exit_code == 0
        told = result.output
    lines = told.splitlines()
    assert f"Usage: warmroute {command}" in lines[0] and "Example: " in told and told.count("warmroute ") > 1
    assert len(lines) <= SCREEN[0] and max(map(len, lines)) <= SCREEN[1]


def test_commands_are_listed_in_whole_sentences() -> None:
    """None is cut off at a terminal's width."""
    told = run("--help")
    assert told.exit_code == 0 and "..." not in told.output.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("line", "environ", "words"),
    [
        ("check", {"WARMROUTE_CONFIG": "/nowhere.yaml"}, "/nowhere.yaml: can't be read"),
        ("score --prompt a", {"WARMROUTE_URL": "http://nowhere.invalid"}, "http://nowhere.invalid can't be asked"),
        (f"warmup {__file__}", {"WARMROUTE_URL": "http://nowhere.invalid"}, "http://nowhere.invalid can't be asked"),
    ],
)
def test_variables_of_the_command_line(line: str, environ: dict[str, str], words: str) -> None:
    """Where the configuration and the gateway are may be said once."""
    result = CliRunner().invoke(main, line.split(), env=environ)
    assert result.exit_code == 1 and words in result.stderr


def test_the_demo_takes_nobody_else_for_its_gateway() -> None:
    """Its port is taken: one line, before anything is started."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        result = run("demo", "--keep", "--port", other.getsockname()[1])
    assert result.exit_code == 1 and "is in use" in result.stderr and "The page" not in result.output


def test_completion() -> None:
    """For each shell a script that asks us; commands and options are what it is told."""
    for shell in ("bash", "zsh", "fish"):
        told = run("completion", shell)
        assert told.exit_code == 0 and "_WARMROUTE_COMPLETE" in told.output
    asked = {"_WARMROUTE_COMPLETE": "zsh_complete", "COMP_WORDS": "warmroute check --j", "COMP_CWORD": "2"}
    assert "--json" in CliRunner().invoke(main, [], env=asked, prog_name="warmroute").output
    assert "did you mean bash?" in run("completion", "bahs").stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Usage: warmroute"),
        (("chek",), "Did you mean 'check'?"),
        (("check", "--jsn"), "Did you mean '--json'? (see warmroute check --help)"),
        (("serve", "--log-level", "warnings"), "--log-level: should be 'debug', 'info', 'warning' or 'error'"),
        (("serve", "--policy", "predictedttft"), "did you mean predicted-ttft?"),
        (("serve", "--host", "nowhere.invalid"), "gateway.host: nowhere.invalid is not known"),
        (("serve", "--host", "192.0.2.1"), "is no address of this machine"),
        (("serve", "--config", str(ROOT)), "can't be read: Is a directory"),
        (("serve", "--config", sys.executable), "warmroute: "),
        (("serve", "--model", "name=m,tokenizer=Qwen/Qwen3-8B"), "nothing is downloaded here"),
        (("score", "--messages", "/nowhere.json"), "/nowhere.json can't be read: No such file"),
        (("score", "--url", "http://nowhere.invalid", "--prompt", "a"), "--url says where it is"),
        (("warmup", "/nowhere.txt"), "/nowhere.txt: can't be read"),
        (("check", "--wait", "-1"), "--wait"),
        (("serve", "--pod", "name=a,address=http://a", "--pod", "name=a,address=http://b"), "--pod: "),
        (("demo", "--keep", "--json"), "--keep"),
        (("demo", "--port", "80000"), "--port"),
    ],
)
def test_what_is_wrong_is_said_with_a_hint(arguments: tuple[str, ...], words: str) -> None:
    """Exit code above 0 and, but for the help of who gives no command, one line."""
    result = run(*arguments)
    assert result.exit_code in (1, 2) and words in result.stderr, result.output
    assert not arguments or len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("serve", "--config", "/nowhere/x.yaml"), "can't be read"),
        (("serve", "--pod", "nonsense"), "--pod"),
        (("serve", "--pod", "name=a,address=ftp://x"), "address"),
        (("serve", "--model", "name=m,tokenizer=/nowhere"), "tokenizer.json"),
        (("serve", "--policy", "best"), "policy"),
        (("check", "--config", "/nowhere/x.yaml"), "can't be read"),
        (("score",), "exactly one"),
        (("score", "--prompt", "a", "--token-ids", __file__), "exactly one"),
        (("score", "--token-ids", __file__), "not JSON"),
        (("score", "--url", "nonsense", "--prompt", "a"), "nonsense can't be asked"),
        (("score", "--url", "http://127.0.0.1:1", "--prompt", "a"), "can't be asked"),
    ],
)
def test_one_plain_line(arguments: tuple[str, ...], words: str) -> None:
    """Bad input: exit code above 0, one line that names what is wrong, no traceback."""
    command = [sys.executable, "-m", "router", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert run.returncode > 0 and run.stdout == ""
    assert words in run.stderr and len(run.stderr.strip().splitlines()) == 1, run.stderr


def test_serve_by_flags(fleet: list[PodProcess]) -> None:
    """Without a file, by flags alone: the gateway that the flags describe."""
    port, one = free_port(), fleet[0].configured
    pod = ",".join(f"{name}={one[name]}" for name in ("name", "address", "events", "replay"))
    command = [sys.executable, "-m", "router", "serve", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--pod", pod, "--model", f"name={MODEL},tokenizer={TOKENIZER}"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            assert any(f"running on http://127.0.0.1:{port}" in line for line in process.stderr)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", **PLAIN) as http:
                answer = http.post("/score", json={"model": MODEL, "prompt": "x " * 50}).json()
            assert ([entry["pod"] for entry in answer["pods"]], answer["block_size"]) == (["pod-0"], BLOCK)
        finally:
            process.terminate()


def test_score(served: GatewayProcess, tmp_path: Path) -> None:
    """All three forms of a prompt; the model is found out; the table marks the pick, the JSON is the answer."""
    ids = list(range(100, 200))
    with httpx.Client(base_url=served.url, **PLAIN) as http:
        home = http.post("/v1/completions", json={"model": MODEL, "prompt": ids, "max_tokens": 1})
    pod = home.headers["x-warmroute-pod"]
    answer = json.loads(run("score", "--url", served.url, "--token-ids", file_of(tmp_path, ids), "--json").output)
    assert (answer["model"], answer["pick"], answer["tokens"]) == (MODEL, pod, 100)
    table = run("score", "--url", served.url, "--token-ids", file_of(tmp_path, ids)).output
    (marked,) = [line for line in table.splitlines() if "→" in line]
    assert pod in marked and " 96 " in marked and "gpu 6" in marked
    assert f"pick: {pod}: holds the longest prefix" in table and "timing: " in table
    assert f"price of {pod} rank 0: " in table and "to compute 4 tokens that it doesn't hold" in table
    for entry in answer["pods"]:
        assert sum(entry["price_parts"].values()) == pytest.approx(entry["price"], abs=1e-5)
    messages = [{"role": "user", "content": "hello"}]
    lone = json.loads(run("score", "--url", served.url, "--messages", file_of(tmp_path, messages), "--json").output)
    body = {"model": MODEL, "messages": messages, "tools": [{"type": "function", "function": {"name": "f"}}]}
    whole = json.loads(run("score", "--url", served.url, "--messages", file_of(tmp_path, body), "--json").output)
    assert whole["tokens"] > lone["tokens"] > 0
    refused = run("score", "--url", served.url, "--prompt", "x", "--model", "unheard")
    assert refused.exit_code == 1 and "404" in refused.stderr and MODEL in refused.stderr


def config_of(fleet: list[PodProcess], **model: Any) -> dict[str, Any]:
    """A configuration of the fleet and its model."""
    static = [pod.configured for pod in fleet]
    return {"discovery": {"static": static}, "models": [{"name": MODEL, "tokenizer": str(TOKENIZER), **model}]}


def check(folder: Path, config: dict[str, Any]) -> Result:
    """`warmroute check` of a configuration."""
    return run("check", "--config", file_of(folder, config), "--wait", "0.3")


def test_check_of_a_fleet_that_is_well(fleet: list[PodProcess], tmp_path: Path) -> None:
    """Exit code 0; every line a ✓, for every rank; also where the pods tokenize."""
    for tokenizer, words in (
        (str(TOKENIZER), "token ids equal the pod's own, for 4 of 4"),
        ("pod", "/tokenize answers"),
    ):
        result = check(tmp_path, config_of(fleet, tokenizer=tokenizer))
        assert result.exit_code == 0, result.output
        *lines, last = result.output.splitlines()
        assert last == "Nothing is wrong." and all(line.startswith("✓ pod-") for line in lines)
        assert sum(words in line for line in lines) == 2
        assert sum("rank 1: the replay" in line for line in lines) == 1


def test_check_without_a_file(fleet: list[PodProcess]) -> None:
    """Pods and models by flags; JSON has all that the lines say."""
    pod = ",".join(f"{name}={value}" for name, value in fleet[0].configured.items() if name != "data_parallel_size")
    flags = ("--pod", pod, "--model", f"name={MODEL}s,tokenizer={TOKENIZER}", "--wait", "0.3")
    told = json.loads(run("check", *flags, "--json").output)
    assert told["wrong"] == sum(one["fine"] is False for one in told["findings"]) > 0
    assert {"about": f"{MODEL}s", "fine": False, "text": f"is served by none of the pods (is it {MODEL}?)."} in told[
        "findings"
    ]
    lines = run("check", *flags).output.splitlines()
    assert [line[2:] for line in lines[:-1]] == [f"{one['about']}: {one['text']}" for one in told["findings"]]
    assert "--pod name=pod-0" in run("check").output


def test_check_finds_what_is_wrong(fleet: list[PodProcess], tmp_path: Path) -> None:
    """Each thing that is wrong is one plain line, and the exit code is 1."""
    config = config_of(fleet, tokenizer=str(OTHER_TOKENIZER), block_size=32)
    first, second = config["discovery"]["static"]
    first["replay"] = f"tcp://127.0.0.1:{free_port()}"
    second["events"], second["data_parallel_size"] = f"tcp://127.0.0.1:{free_port()}", 1
    dead = {"name": "pod-2", "address": f"http://127.0.0.1:{free_port()}"}
    config["discovery"]["static"].append(dead)
    config["models"].append({"name": "absent"})
    result = check(tmp_path, config)
    assert result.exit_code == 1
    wrong = [line for line in result.output.splitlines() if line.startswith("✗")]
    for words in (
        f"pod-0: the replay at {first['replay']} does not answer",
        "pod-0: its blocks have 16 tokens, and not 32",
        f"pod-0: {MODEL}: token ids of text 1 differ from the pod's: at place 0, ours [",
        f"pod-0: {MODEL}: token ids of a chat with tools differ",
        f"pod-1: no publisher of events answers at {second['events']}",
        f"pod-2: {dead['address']} can't be reached",
        "absent: is served by none of the pods",
    ):
        assert sum(words in line for line in wrong) == 1, (words, result.output)
    assert f"Wrong: {len(wrong)}." in result.output


def test_check_of_a_fleet_without_events(fleet: list[PodProcess], tmp_path: Path) -> None:
    """That is wrong, unless the policy goes by what it has sent, or knows nothing of caches."""
    config = config_of(fleet[:1], tokenizer=str(TOKENIZER))
    config["discovery"]["static"] = [{name: config["discovery"]["static"][0][name] for name in ("name", "address")}]
    for policy, mark, code in (("predicted-ttft", "✗", 1), ("approximate", " ", 0), ("round-robin", " ", 0)):
        result = check(tmp_path, config | {"scoring": {"policy": policy}})
        (line,) = [line for line in result.output.splitlines() if "no event feed is configured" in line]
        assert line.startswith(f"{mark} pod-0: ") and result.exit_code == code, result.output


def test_check_sees_events(fleet: list[PodProcess], tmp_path: Path) -> None:
    """What a pod publishes while it is looked at is said; the wait ends with it."""
    address = fleet[0].address
    script = f"""if True:
        import httpx, itertools
        for n in itertools.count():
            httpx.post("{address}/v1/completions", json={{"model": "{MODEL}", "prompt": [n + 9] * 40, "max_tokens": 1}})
    """
    with subprocess.Popen([sys.executable, "-c", script]) as talker:
        try:
            path = file_of(tmp_path, config_of(fleet[:1]))
            result = run("check", "--config", path, "--wait", "20")
        finally:
            talker.kill()
    assert result.exit_code == 0, result.output
    assert "pod-0: events arrive from tcp://" in result.output


def test_check_says_what_start_up_says(fleet: list[PodProcess], tmp_path: Path) -> None:
    """A tokenizer's file that is broken: the same words from both."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{broken")
    path = file_of(tmp_path, config_of(fleet, tokenizer=str(folder)))
    checked = run("check", "--config", path, "--wait", "0.1")
    command = [sys.executable, "-m", "router", "serve", "--config", str(path), "--port", str(free_port())]
    started = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert checked.exit_code == started.returncode == 1
    words = started.stderr.strip().removeprefix("warmroute: ")
    assert str(folder) in words and words in checked.output
