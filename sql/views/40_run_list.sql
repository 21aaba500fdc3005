-- One row a run: the command, what it graded, how it ended. outcome is died where no end was written and a later run began
-- (runs hold a lock, so they do not overlap), and null while it runs or died as the last.
create or replace view run_list as
select
    r.run_id, r.command, d.label as dataset, g.label as grader, b.label as rubric, r.pid, r.started_at,
    coalesce(e.outcome, case when r.started_at < (select max(started_at) from runs) then 'died' end) as outcome, e.seconds,
    (e.facts::json ->> 'replied')::bigint as replied,
    (e.facts::json ->> 'scored')::bigint as scored,
    coalesce((select sum(l.spent_usd) from ledger l where l.run_id = r.run_id and l.kind <> 'forked'), 0)::decimal(38, 15) as spent_usd,
    coalesce((select sum(l.unresolved_usd) from ledger l where l.run_id = r.run_id), 0)::decimal(38, 15) as unresolved_usd,
    e.facts::json ->> 'message' as message, s.grader_id, s.rubric_id
from runs r
left join run_ends e using (run_id)
left join datasets d using (version_id)
left join setups s using (setup_id)
left join grader_labels g using (grader_id)
left join rubric_labels b using (rubric_id);
