-- Internal.
-- One row per thing that counts in the accounts. An attempt: its questions, what it still holds and what of it is
-- unresolved, at the time it was opened. A reply: its tokens. An entry of the ledger: what it spent, or took back, at
-- the time it was booked. Whatever these rows are grouped by, their sums are the balance. by_fork: what a fork left
-- with the original; without_reply: what a person settled or took back, and what an attempt was charged as a whole.
create or replace view account_lines as
with standing as (
    select attempt_id, sum(reserved_usd) as reserved_usd, sum(unresolved_usd) as unresolved_usd
    from ledger
    group by attempt_id
),
lines as (
    select
        a.opened_at as counted_at, a.attempt_id, a.model, false as by_fork, false as without_reply,
        a.lines as questions, 0 as replies, 0 as answers,
        0 as input_tokens, 0 as cached_tokens, 0 as output_tokens, 0 as spent_usd,
        coalesce(s.reserved_usd, 0) as reserved_usd, coalesce(s.unresolved_usd, 0) as unresolved_usd
    from paid_attempts a
    left join standing s using (attempt_id)
    union all
    select
        recorded_at, attempt_id, model, false, false, 0, 1, (input_tokens is not null)::integer,
        coalesce(input_tokens, 0),
        coalesce(cached_tokens, 0), coalesce(output_tokens, 0), 0, 0, 0
    from reply_tokens
    union all
    select
        l.recorded_at, l.attempt_id, coalesce(r.model, a.model), l.kind = 'forked', l.request_id is null,
        0, 0, 0, 0, 0, 0, l.spent_usd, 0, 0
    from ledger l
    join paid_attempts a using (attempt_id)
    left join reply_tokens r on r.attempt_id = l.attempt_id and r.key = l.key and r.request_id = l.request_id
    where l.spent_usd <> 0
)
select
    l.counted_at,
    a.run_id,
    l.attempt_id,
    a.batch_id,
    a.by_batch,
    l.model,
    l.by_fork,
    l.without_reply,
    a.inherited,
    l.questions::bigint as questions,
    l.replies::bigint as replies,
    l.answers::bigint as answers,
    l.input_tokens::bigint as input_tokens,
    l.cached_tokens::bigint as cached_tokens,
    l.output_tokens::bigint as output_tokens,
    l.spent_usd::decimal(38, 15) as spent_usd,
    l.reserved_usd::decimal(38, 15) as reserved_usd,
    l.unresolved_usd::decimal(38, 15) as unresolved_usd
from lines l
join paid_attempts a using (attempt_id);

-- One row per attempt with unresolved money: requests, dollars, since when and why, and whether it is still open, so that
-- a result may still arrive.
create or replace view unresolved_attempts as
with lines as (
    select
        attempt_id, key,
        sum(unresolved_usd) as unresolved_usd,
        max(recorded_at) filter (where unresolved_usd > 0) as since,
        arg_max(coalesce(note, ''), recorded_at) filter (where unresolved_usd > 0) as why
    from ledger
    group by attempt_id, key
    having sum(unresolved_usd) <> 0
)
select
    a.attempt_id,
    a.run_id,
    a.batch_id,
    a.backend,
    a.model,
    a.by_batch,
    not a.closed as open,
    count(*) as lines,
    sum(l.unresolved_usd)::decimal(38, 15) as unresolved_usd,
    a.opened_at,
    max(l.since) as since,
    arg_max(l.why, l.since) as why
from lines l
join paid_attempts a using (attempt_id)
group by all;
