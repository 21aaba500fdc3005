-- Internal.
-- One row per attempt that was opened and not closed: something may still be running, or a process crashed.
create or replace view open_attempts as
with last_step as (
    select attempt_id, arg_max(state, step) as state, bool_or(state = 'closed') as closed
    from attempt_steps
    group by attempt_id
)
select
    a.attempt_id,
    a.run_id,
    a.backend,
    a.grader_id,
    a.lines,
    a.ceiling_usd,
    coalesce(s.state, 'opened') as state,
    a.facts,
    coalesce((try_cast(a.facts as json) ->> 'outlives')::boolean, false) as outlives,
    a.opened_at
from attempts a
left join last_step s using (attempt_id)
where not coalesce(s.closed, false);
