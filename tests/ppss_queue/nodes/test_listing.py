"""Lists of nodes: what -S, a nodes file and [nodes] in ppss.toml mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppss_queue.address import SshHost
from ppss_queue.errors import BadInput
from ppss_queue.nodes.listing import choose, read_nodes_file, read_nodes_table
from ppss_queue.nodes.spec import Mode, NodeSpec, parse_node

LIST = """\
# the farm
big1 slots=16 scratch=/fast nice=10 tags=gpu,fast mode=ssh   # the loud one
me@big2:2222 name=second "scratch=/with blank"

node[01-03] tags=small map=/mnt/a=/srv/a map=/mnt/b=/srv/b
4/:
[::1]:2222
"""


def file_of(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "nodes"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def names(nodes: list[NodeSpec]) -> list[str]:
    return [node.name for node in nodes]


def test_a_file_names_a_node_a_line_with_settings_comments_and_ranges(tmp_path: Path) -> None:
    nodes = read_nodes_file(file_of(tmp_path, LIST))
    assert names(nodes) == ["big1", "second", "node01", "node02", "node03", ":", "[::1]:2222"]
    big1, second, node01, _, _, here, six = nodes
    assert (big1.slots, big1.scratch, big1.nice, big1.tags, big1.mode) == (
        "16",
        "/fast",
        10,
        ("gpu", "fast"),
        Mode.SSH,
    )
    assert second.host == SshHost("big2", "me", 2222) and second.scratch == "/with blank"
    assert node01.host == SshHost("node01") and node01.maps == ("/mnt/a=/srv/a", "/mnt/b=/srv/b")
    assert here.here and here.slots == "4" and here.place == ":"
    assert six.host == SshHost("::1", "", 2222)


def test_a_file_of_another_system_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    nodes = read_nodes_file(file_of(tmp_path, b"\xef\xbb\xbfbig1\tslots=2 \r\nbig2\r\n"))
    assert [(node.name, node.slots) for node in nodes] == [("big1", "2"), ("big2", "")]


def test_the_table_of_ppss_toml_takes_settings_as_text_or_as_a_table() -> None:
    table = {"big1": "slots=16 tags=gpu", "node[1-2]": {"slots": 4, "tags": ["a", "b"]}, "plain": ""}
    nodes = read_nodes_table(table, "ppss.toml")
    assert names(nodes) == ["big1", "node1", "node2", "plain"]
    assert nodes[0].tags == ("gpu",) and nodes[2].slots == "4" and nodes[2].tags == ("a", "b")


def test_names_tags_and_ranges_choose_from_the_list_and_other_names_are_hosts(tmp_path: Path) -> None:
    known = read_nodes_file(file_of(tmp_path, LIST))
    assert names(choose(known, "@small,second,node02,other,node[02-04]")) == [
        "node01",
        "node02",
        "node03",
        "second",
        "other",
        "node04",
    ]
    assert choose(known, "second")[0].host == SshHost("big2", "me", 2222)
    assert choose(known, "@all") == known == choose(known, None)


def test_two_users_on_one_host_and_two_names_of_one_host_are_different_nodes() -> None:
    assert names(choose([], "a@host,b@host,host,host.example,host:2222")) == [
        "a@host",
        "b@host",
        "host",
        "host.example",
        "host:2222",
    ]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("big1 slots", "'slots' is no setting of node 'big1'. Write KEY=VALUE"),
        ("big1 slotz=3", "'slotz', which is no setting. Did you mean 'slots'?"),
        ("big1 wonder=3", "'wonder', which is no setting. There are: slots, name"),
        ("big1 slots=none", "'slots=none' of node 'big1' can't be: write 8, 50%"),
        ("big1 slots=0", "can't be"),
        ("big1 slots=-50%", "can't be"),
        ("big1 nice=20", "from -20 to 19"),
        ("big1 mode=telnet", "write worker or ssh"),
        ("big1 reverse=true", "write yes or no"),
        ("big1 slots=2 slots=3", "has 'slots' twice"),
        ("big1 map=/a", "write map=FROM=TO"),
        ("big1 tags=,", "write words with commas"),
        ("big1 'slots=3", "a quote is not closed"),
        ("big1 name=-x", "can't name a node"),
        ("-oProxyCommand=x", "no host that SSH can reach"),
        ("a$(b)", "no host that SSH can reach"),
        ("me:secret@big1", "works with keys only"),
        ("big1:99999", "a port is a number from 1 to 65535"),
        ("big1/x", "is no node"),
        ("node[3-1]", "no range that can be read"),
        ("node[a-b]", "no range that can be read"),
        ("node[0-99999]", "more than 10,000 nodes"),
        ("big1 scratch-limit=lots", "is no size"),
        ("big1 mem=lots", "is no size"),
        ("big1 gpus=0,0", "'0,0' names no GPUs. Give how many there are, or which"),
        ("big1 cpus=some", "'cpus=some' of node 'big1' can't be: write a whole number from 0 up"),
    ],
)
def test_what_is_wrong_in_a_list_is_told_with_file_and_line(tmp_path: Path, line: str, sentence: str) -> None:
    path = file_of(tmp_path, f"good\n\n{line}\n")
    with pytest.raises(BadInput) as error:
        read_nodes_file(path)
    assert str(error.value).startswith(f"'{path}', line 3: ") and sentence in str(error.value)


def test_a_line_that_is_no_list_is_not_told_in_full(tmp_path: Path) -> None:
    for line in ("x" * 10_000 + "$", f"big1 {'x' * 10_000}", f"big1 slots={'9' * 5000}x"):
        with pytest.raises(BadInput) as error:
            read_nodes_file(file_of(tmp_path, line))
        assert len(str(error.value)) < 1000 and str(error.value).endswith((".", "slots=8.", "one)."))


def test_a_node_that_is_there_twice_is_told_with_both_lines(tmp_path: Path) -> None:
    path = file_of(tmp_path, "a\nb\na slots=3\n")
    with pytest.raises(BadInput, match=r"line 3: node 'a' is there already \('.*', line 1\)"):
        read_nodes_file(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("", "names no node"), ("# nothing\n", "names no node"), (b"\xff\xfe", "is no text in UTF-8")],
)
def test_a_file_without_nodes_is_refused(tmp_path: Path, text: str | bytes, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        read_nodes_file(file_of(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"there is no nodes file .*absent"):
        read_nodes_file(tmp_path / "absent")


def test_an_unknown_tag_is_told_with_those_that_there_are(tmp_path: Path) -> None:
    known = read_nodes_file(file_of(tmp_path, "a tags=gpu,fast\n"))
    with pytest.raises(BadInput, match=r"no node has the tag 'gpus'. Did you mean '@gpu'\?"):
        choose(known, "@gpus")
    with pytest.raises(BadInput, match="There are: @fast, @gpu"):
        choose(known, "@other")
    with pytest.raises(BadInput, match="Tags come from a list of nodes"):
        choose([], "@other")
    with pytest.raises(BadInput, match="-S names no node"):
        choose(known, ",")


def test_slots_before_the_host_are_those_of_gnu_parallel() -> None:
    assert parse_node(["8/me@big1"]).slots == "8"
