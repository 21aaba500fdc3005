-- One row an attempt that outlives its process: a batch at a provider, or request files that a person carries. phase is what
-- was last known (opened, uploaded, creating, unknown, doubted, exported; the provider's own status once it is created;
-- closed), at the time seen_at; completed and failed are the provider's counts. Money is what this attempt has spent, holds
-- and leaves unresolved.
create or replace view batches as
with steps as (
    select
        attempt_id,
        arg_max(state, step) as state,
        max(recorded_at) as last_step_at,
        arg_max(facts::json ->> 'status', step) filter (where facts::json ->> 'status' is not null) as status,
        arg_max(facts::json ->> 'batch_id', step) filter (where facts::json ->> 'batch_id' is not null) as batch_id,
        arg_max(facts::json -> 'counts', step) filter (where json_type(facts::json -> 'counts') = 'ARRAY') as counts,
        arg_max(facts::json ->> 'expires_at', step) filter (where facts::json ->> 'expires_at' is not null) as expires_at,
        arg_max(facts::json ->> 'says', step) filter (where facts::json ->> 'says' is not null) as says,
        arg_max(facts::json ->> 'why', step) filter (where facts::json ->> 'why' is not null) as why
    from attempt_steps
    group by attempt_id
),
money as (
    select
        attempt_id,
        sum(reserved_usd) as reserved_usd,
        coalesce(sum(spent_usd) filter (where kind <> 'forked'), 0) as spent_usd,  -- what a fork's original paid was paid
        sum(unresolved_usd) as unresolved_usd
    from ledger
    group by attempt_id
)
select
    a.attempt_id,
    coalesce(s.batch_id, '') as batch_id,
    g.label as grader,
    b.label as rubric,
    d.label as dataset,
    case when s.state in ('in_batch', 'cancelling', 'collected', 'created', 'lost') then coalesce(s.status, s.state)
         else coalesce(s.state, 'opened') end as phase,
    coalesce(s.state, 'opened') = 'closed' as closed,
    a.lines,
    (s.counts ->> 1)::bigint as completed,
    (s.counts ->> 2)::bigint as failed,
    a.opened_at,
    to_timestamp(s.expires_at::double)::timestamp as expires_at,
    coalesce(s.last_step_at, a.opened_at) as seen_at,
    a.ceiling_usd,
    coalesce(m.reserved_usd, 0)::decimal(38, 15) as reserved_usd,
    coalesce(m.spent_usd, 0)::decimal(38, 15) as spent_usd,
    coalesce(m.unresolved_usd, 0)::decimal(38, 15) as unresolved_usd,
    case when coalesce(s.state, '') = 'closed' then s.why else s.says end as says,
    a.facts::json ->> 'kind' as kind,
    r.setup_id, r.version_id, a.facts
from attempts a
join runs r using (run_id)
left join steps s using (attempt_id)
left join money m using (attempt_id)
left join setups u using (setup_id)
left join grader_labels g on g.grader_id = a.grader_id
left join rubric_labels b using (rubric_id)
left join datasets d using (version_id)
where coalesce((a.facts::json ->> 'outlives')::boolean, false);
