-- One row per run: the command, its task, dataset, grader and rubric, and how it ended. replied counts the replies to its requests,
-- also those that a later command collected, usable those that could be parsed; the cost is of the same replies. outcome is crashed if no end was recorded and a later run started (a lock prevents overlap), and null while it runs or
-- if the last run crashed.
create or replace view run_list as
select
    r.run_id, r.command, s.task, d.label as dataset, g.label as grader, b.label as rubric, r.pid, r.started_at,
    coalesce(e.outcome, case when r.started_at < (select max(started_at) from runs) then 'crashed' end) as outcome,
    e.seconds,
    coalesce(t.replied, 0)::bigint as replied,
    coalesce(t.usable, 0)::bigint as usable,
    coalesce((select sum(l.spent_usd) from ledger l where l.run_id = r.run_id and l.kind <> 'forked'), 0)
        ::decimal(38, 15) as spent_usd,
    coalesce((select sum(l.unresolved_usd) from ledger l where l.run_id = r.run_id), 0)::decimal(38, 15)
        as unresolved_usd,
    case when t.collected and (e.outcome = 'interrupted' or message_text like '%in flight with batches%'
        or message_text like '%in flight in batches%')
        then 'its batches have been collected' else message_text end as message, s.grader_id, s.rubric_id
from runs r
left join (select *, try_cast(facts as json) ->> 'message' as message_text from run_ends) e using (run_id)
left join (
    select
        a.run_id, count(p.key) as replied, count(*) filter (where p.key is not null and d.reading.usable) as usable,
        -- of what outlives its process, nothing is open
        coalesce(bool_or(w.outlives) and not bool_or(w.outlives and w.open), false) as collected
    from attempts a
    left join (
        select a.attempt_id, coalesce((try_cast(a.facts as json) ->> 'outlives')::boolean, false) as outlives,
            o.attempt_id is not null as open
        from attempts a left join open_attempts o using (attempt_id)
    ) w using (attempt_id)
    left join replies p using (attempt_id)
    left join latest_readings d on d.attempt_id = p.attempt_id and d.key = p.key and d.request_id = p.request_id
    group by a.run_id
) t using (run_id)
left join dataset_labels d using (version_id)
left join setups s using (setup_id)
left join grader_labels g using (grader_id)
left join rubric_labels b using (rubric_id);
