from clfew.runs.folders import Run


def test_a_half_written_row_is_removed(tmp_path):
    run = Run(tmp_path)
    for step in (1, 2, 3):
        run.log({"step": step})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    run.keep_metrics_until(2)
    run.log({"step": 3})
    assert [row["step"] for row in run.metrics()] == [1, 2, 3]
