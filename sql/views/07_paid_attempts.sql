-- Internal.
-- One row per attempt that may cost money: its batch ('' when it went call by call or was never created), its model (as
-- the replies name it, else as it was asked for, without the date of a snapshot), whether it went by batch, and
-- whether it was sent before this database was forked from another and so belongs to that one (inherited).
create or replace view paid_attempts as
with present as (
    select arg_max(ledger_id, number) as ledger_id from ledger_homes
),
forked as (
    select min(h.recorded_at) as forked_at
    from ledger_homes h, present p
    where h.ledger_id = p.ledger_id and h.ledger_id::varchar <> (select value from meta where key = 'ledger')
),
paid as (
    select * from attempts
    where price is not null or ceiling_usd > 0 or attempt_id in (select attempt_id from ledger)
),
steps as (
    select
        attempt_id,
        bool_or(state = 'closed') as closed,
        coalesce(arg_max(f ->> 'batch_id', step) filter (where f ->> 'batch_id' is not null), '')
            as batch_id
    from (select *, try_cast(facts as json) as f from attempt_steps)
    group by attempt_id
),
answering as (
    select attempt_id, mode(model) as model
    from replies
    where attempt_id in (select attempt_id from paid)
    group by attempt_id
)
select
    p.attempt_id,
    p.run_id,
    p.backend,
    p.grader_id,
    p.lines,
    p.price,
    p.opened_at,
    coalesce(s.closed, false) as closed,
    coalesce(s.batch_id, '') as batch_id,
    regexp_replace(coalesce(a.model, try_cast(p.facts as json) ->> 'model', ''), '-\d{4}-\d{2}-\d{2}$', '') as model,
    coalesce((try_cast(p.facts as json) ->> 'outlives')::boolean, false) as by_batch,
    coalesce(p.opened_at <= f.forked_at, false) as inherited
from paid p
cross join forked f
left join steps s using (attempt_id)
left join answering a using (attempt_id);

-- Internal.
-- One row per reply of an attempt that may cost money: the tokens of its usage. They are null where the usage does not
-- hold together and was not believed.
create or replace view reply_tokens as
with found as (
    select p.*, a.model as attempt_model, try_cast(p.usage as json) as u
    from replies p
    join paid_attempts a using (attempt_id)
),
counted as (
    select
        *,
        case when json_type(u -> '$.prompt_tokens') = 'UBIGINT' then (u ->> '$.prompt_tokens')::hugeint end as prompt,
        case when json_type(u -> '$.completion_tokens') = 'UBIGINT'
            then (u ->> '$.completion_tokens')::hugeint
        end as completion,
        coalesce(json_type(u -> '$.prompt_tokens_details'), 'NULL') in ('NULL', 'OBJECT') as detailed,
        case coalesce(json_type(u -> '$.prompt_tokens_details.cached_tokens'), 'NULL')
            when 'NULL' then 0
            when 'UBIGINT' then (u ->> '$.prompt_tokens_details.cached_tokens')::hugeint
        end as cached,
        case coalesce(json_type(u -> '$.prompt_tokens_details.cache_write_tokens'), 'NULL')
            when 'NULL' then 0
            when 'UBIGINT' then (u ->> '$.prompt_tokens_details.cache_write_tokens')::hugeint
        end as written
    from found
),
believed as (
    select
        *,
        coalesce(
            outcome = 'answered' and detailed and prompt <= 1000000000000 and completion <= 1000000000000
                and cached + written <= prompt,
            false
        ) as holds
    from counted
)
select
    attempt_id,
    key,
    request_id,
    regexp_replace(coalesce(model, attempt_model), '-\d{4}-\d{2}-\d{2}$', '') as model,
    recorded_at,
    case when holds then prompt::bigint end as input_tokens,
    case when holds then cached::bigint end as cached_tokens,
    case when holds then completion::bigint end as output_tokens
from believed;
