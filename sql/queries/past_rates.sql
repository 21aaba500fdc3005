-- Internal.
-- How fast a local model has answered on a machine, one row a run, the newest first: rows a second from its first block
-- to its last answer, without loading the model. Parameters: setup_id (marks the runs asked in this very way), task,
-- decoding, weights (the hash of the model's files), machine, least (answers of a run that counts).
with answered as (
    select
        a.run_id, count(*) as answers, epoch(max(p.recorded_at) - min(a.opened_at)) as seconds,
        avg(length(e.instruction) + length(e.input) + length(e.output)) as row_characters
    from attempts a
    join replies p using (attempt_id)
    left join questions q using (key)
    left join examples e using (example_id)
    where p.outcome = 'answered'
    group by a.run_id
)
select
    r.started_at, n.answers, n.answers / n.seconds as rows_per_second, n.row_characters,
    r.setup_id = $setup_id::uuid as same_setup
from answered n
join runs r using (run_id)
join setups s using (setup_id)
join graders g using (grader_id)
where n.answers >= $least and n.seconds > 0 and s.task = $task and s.decoding = $decoding
  and coalesce(g.fingerprint::json ->> 'file', g.fingerprint::json ->> 'files') = $weights
  and json_extract_string(try_cast(r.facts as json), '$.backend.machine') = $machine
order by same_setup desc, r.started_at desc, r.run_id
limit 3;
