"""Reading recordings: three forms, and rows that are not of them."""

import io
from pathlib import Path

import pytest

from taskyard.compose.sample_trace import write
from taskyard.dispatcher.cli.rehearsal.trace import ANY, read_fleet, read_trace
from taskyard.schemas.errors import ConfigError

GENAI = "gmt_create,predict_type,predict_status,exec_time_seconds,groupId,num_images_per_prompt,num_inference_steps"
CLUSTER = (
    "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time"
)
LLM = "TIMESTAMP,ContextTokens,GeneratedTokens"
FLEET = "sn,cpu_milli,memory_mib,gpu,model"
SAMPLE = Path(__file__).parents[2] / "compose" / "sample_trace.csv"


def written(folder: Path, *lines: str) -> Path:
    file = folder / "trace.csv"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_a_genai_request_becomes_a_task_of_its_type_tenant_and_urgency(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        GENAI,
        "2025-01-01 10:00:00,PAINT,SUCCEED,12.5,g1,1.0,20.0",
        "2025-01-01 10:00:07,PAINT,FAILED,3.0,g2,4.0,20.0",
    )

    quick, slow = read_trace(file).rows

    assert (quick.type, quick.tenant, quick.service_s, quick.priority, quick.is_failed) == (
        "PAINT", "g1", 12.5, "high", False,
    )  # fmt: skip
    assert (slow.tenant, slow.priority, slow.is_failed) == ("g2", "normal", True)
    assert slow.at_s - quick.at_s == 7


def test_requests_of_one_second_are_spread_over_it(tmp_path: Path) -> None:
    same = "2025-01-01 10:00:00,PAINT,SUCCEED,1.0,g1,1.0,20.0"
    file = written(tmp_path, GENAI, same, same, same, same)

    times = [row.at_s for row in read_trace(file).rows]

    assert [at_s - times[0] for at_s in times] == [0, 0.25, 0.5, 0.75]


def test_a_request_that_never_ran_is_left_out_with_its_reason(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        GENAI,
        "2025-01-01 10:00:00,PAINT,PENDING,1.0,g1,1.0,20.0",
        "2025-01-01 10:00:00,PAINT,SUCCEED,1.0,g1,1.0,20.0",
    )

    trace = read_trace(file)

    assert (len(trace.rows), trace.bad) == (1, 0)
    assert trace.left_out == {"status PENDING": 1}


@pytest.mark.parametrize(
    "line",
    [
        "yesterday,PAINT,SUCCEED,1.0,g1,1.0,20.0",
        "2025-01-01 10:00:00,PAINT,SUCCEED,long,g1,1.0,20.0",
        "2025-01-01 10:00:00,PAINT,SUCCEED,-1.0,g1,1.0,20.0",
        "2025-01-01 10:00:00,PAINT,SUCCEED,nan,g1,1.0,20.0",
        "2025-01-01 10:00:00,a|b,SUCCEED,1.0,g1,1.0,20.0",
        "2025-01-01 10:00:00,,SUCCEED,1.0,g1,1.0,20.0",
        "2025-01-01 10:00:00,PAINT",
    ],
)
def test_a_bad_row_is_counted_and_told_by_its_line(tmp_path: Path, line: str) -> None:
    file = written(tmp_path, GENAI, "2025-01-01 10:00:00,PAINT,SUCCEED,1.0,g1,1.0,20.0", line)

    trace = read_trace(file)

    assert (len(trace.rows), trace.bad) == (1, 1)
    assert trace.first_bad.startswith("line 3: ")


def test_bytes_that_are_no_text_spoil_their_own_row_only(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    good = b"2025-01-01 10:00:00,PAINT,SUCCEED,1.0,g1,1.0,20.0\n"
    file.write_bytes(GENAI.encode() + b"\n" + good + b"\xff\xfe\x00,\xff,\xff\n" + good)

    trace = read_trace(file)

    assert (len(trace.rows), trace.bad) == (2, 1)


def test_a_cluster_task_brings_its_vector_and_the_priority_of_its_class(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        CLUSTER,
        "a,12000,16384,2,1000,,Guaranteed,Running,100,400,150",
        "b,1000,512,0,0,,LS,Failed,110,120,110",
        "c,1000,512,1,500,M1|M2,Burstable,Succeeded,120,130,120",
        "d,1000,512,1,500,,BE,Succeeded,130,140,130",
        "e,1000,512,1,500,,BE,Pending,130,140,",
    )

    trace = read_trace(file)

    assert [row.priority for row in trace.rows] == ["critical", "high", "normal", "low"]
    assert trace.rows[0].needs == {"cpu_milli": 12000, "memory_mib": 16384, "gpu_milli": 2000}
    assert trace.rows[0].service_s == 250
    assert trace.rows[1].needs == {"cpu_milli": 1000, "memory_mib": 512}
    assert trace.rows[1].is_failed
    assert [row.type for row in trace.rows] == [ANY, ANY, "M1+M2", ANY]
    assert trace.left_out == {"never scheduled": 1}


def test_a_chat_request_takes_time_by_its_tokens(tmp_path: Path) -> None:
    file = written(
        tmp_path, LLM, "2023-11-16 18:15:46.6805900,1000,20", "2023-11-16 18:15:47.1805900,0,100",
        "2023-11-16 18:15:48.1805900,0,1000",
    )  # fmt: skip

    first, second, third = read_trace(file).rows

    assert first.service_s == pytest.approx(0.9)
    assert second.at_s - first.at_s == pytest.approx(0.5)
    assert [row.priority for row in (first, second, third)] == ["high", "normal", "low"]
    assert first.needs == {"memory_mib": 125}


def test_other_columns_are_refused_with_those_that_are_known(tmp_path: Path) -> None:
    file = written(tmp_path, "when,what", "1,2")

    with pytest.raises(ConfigError, match=r"(?s)has when, what; known are.*gmt_create.*scheduled_time.*TIMESTAMP"):
        read_trace(file)


def test_an_empty_file_a_missing_one_and_one_without_a_good_row_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").touch()

    with pytest.raises(ConfigError, match="columns"):
        read_trace(tmp_path / "empty.csv")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path / "none.csv")
    with pytest.raises(ConfigError, match=r"no row can be replayed; 1 are bad \(line 2"):
        read_trace(written(tmp_path, GENAI, "never,PAINT,SUCCEED,1.0,g1,1.0,20.0"))


def test_a_limit_bounds_the_rows_that_are_read() -> None:
    trace = read_trace(SAMPLE, limit=50)

    assert len(trace.rows) + sum(trace.left_out.values()) == 50


def test_the_sample_that_is_shipped_is_what_its_generator_makes_and_is_whole() -> None:
    made = io.StringIO()

    write(made)
    trace = read_trace(SAMPLE)

    assert SAMPLE.read_text() == made.getvalue()
    assert trace.form == "genai_requests"
    assert trace.bad == 0
    assert {row.priority for row in trace.rows} == {"high", "normal"}
    assert [row.at_s for row in trace.rows] == sorted(row.at_s for row in trace.rows)


def test_machines_become_instances_that_serve_the_types_which_name_their_model(tmp_path: Path) -> None:
    file = written(tmp_path, FLEET, "n1,32000,262144,0,", "n2,4000,65536,2,M1")

    plain, with_gpu = read_fleet(file, frozenset({ANY, "M1+M2", "M2"}))

    assert plain.types == (ANY,)
    assert plain.capacity == {"slots": 32, "cpu_milli": 32000, "memory_mib": 262144}
    assert with_gpu.types == ("M1+M2", ANY)
    assert with_gpu.capacity == {"slots": 8, "cpu_milli": 4000, "memory_mib": 65536, "gpu_milli": 2000}
    assert with_gpu.labels == {"model": "M1"}


def test_a_fleet_with_a_bad_row_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="line 3"):
        read_fleet(written(tmp_path, FLEET, "n1,32000,262144,0,", "n2,many,1,0,"), frozenset({ANY}))
    with pytest.raises(ConfigError, match="no column gpu, model"):
        read_fleet(written(tmp_path, "sn,cpu_milli,memory_mib", "n1,1,1"), frozenset({ANY}))
