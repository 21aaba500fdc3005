-- One row per batch at a provider, or exported set of request files. phase is the last known
-- status (opened, uploaded, creating, unknown, unconfirmed, exported; the provider's own status once
-- it is created; closed), at the time seen_at; completed and failed are the provider's counts. The dollars are those
-- spent, reserved and unresolved by this attempt.
create or replace view batches as
with steps as (
    select
        attempt_id,
        arg_max(state, step) as state,
        max(recorded_at) as last_step_at,
        arg_max(f ->> 'status', step) filter (where f ->> 'status' is not null) as status,
        arg_max(f ->> 'batch_id', step) filter (where f ->> 'batch_id' is not null) as batch_id,
        arg_max(f -> 'counts', step) filter (where json_type(f -> 'counts') = 'ARRAY') as counts,
        arg_max(f ->> 'expires_at', step)
            filter (where f ->> 'expires_at' is not null) as expires_at,
        arg_max(coalesce(f ->> 'message', f ->> 'says'), step)  -- `says` in databases of release 0.1.0
            filter (where coalesce(f ->> 'message', f ->> 'says') is not null) as message,
        arg_max(f ->> 'why', step) filter (where f ->> 'why' is not null) as why
    from (select *, try_cast(facts as json) as f from attempt_steps)
    group by attempt_id
),
money as (
    select
        attempt_id,
        sum(reserved_usd) as reserved_usd,
        -- what a fork's original paid was paid
        coalesce(sum(spent_usd) filter (where kind <> 'forked'), 0) as spent_usd,
        sum(unresolved_usd) as unresolved_usd
    from ledger
    group by attempt_id
)
select
    a.attempt_id,
    coalesce(s.batch_id, '') as batch_id,
    u.task,
    g.label as grader,
    b.label as rubric,
    d.label as dataset,
    case when s.state in ('in_batch', 'cancelling', 'collected', 'created', 'lost') then coalesce(s.status, s.state)
         when s.state = 'doubted' then 'unconfirmed'  -- as earlier versions spelled it
         else coalesce(s.state, 'opened') end as phase,
    coalesce(s.state, 'opened') = 'closed' as closed,
    a.lines,
    try_cast(s.counts ->> 1 as bigint) as completed,
    try_cast(s.counts ->> 2 as bigint) as failed,
    a.opened_at,
    case when try_cast(s.expires_at as double) between 0 and 1e11  -- what a server says
        then to_timestamp(s.expires_at::double)::timestamp end as expires_at,
    coalesce(s.last_step_at, a.opened_at) as seen_at,
    a.ceiling_usd,
    coalesce(m.reserved_usd, 0)::decimal(38, 15) as reserved_usd,
    coalesce(m.spent_usd, 0)::decimal(38, 15) as spent_usd,
    coalesce(m.unresolved_usd, 0)::decimal(38, 15) as unresolved_usd,
    case when coalesce(s.state, '') = 'closed' then s.why else s.message end as message,
    try_cast(a.facts as json) ->> 'kind' as kind,
    r.setup_id, r.version_id, a.facts
from attempts a
join runs r using (run_id)
left join steps s using (attempt_id)
left join money m using (attempt_id)
left join setups u using (setup_id)
left join grader_labels g on g.grader_id = a.grader_id
left join rubric_labels b using (rubric_id)
left join dataset_labels d using (version_id)
where coalesce((try_cast(a.facts as json) ->> 'outlives')::boolean, false);
