-- One row a UTC day: questions sent and what of them is still reserved or unresolved, on the day they were sent; replies,
-- tokens and dollars spent on the day they were booked. A day on which the database was forked takes off what it left.
create or replace view money_by_day as
select
    counted_at::date as day,
    sum(questions)::bigint as questions,
    sum(replies)::bigint as replies,
    sum(input_tokens)::bigint as input_tokens,
    sum(cached_tokens)::bigint as cached_tokens,
    sum(output_tokens)::bigint as output_tokens,
    sum(spent_usd)::decimal(38, 15) as spent_usd,
    sum(reserved_usd)::decimal(38, 15) as reserved_usd,
    sum(unresolved_usd)::decimal(38, 15) as unresolved_usd,
    min(counted_at) as first_at,
    max(counted_at) as last_at
from account_lines
group by day;

-- One row a run that may have cost money, with what it graded. What a fork left with the original is a row of its own,
-- without a run, whose command is (forked).
create or replace view money_by_run as
with sums as (
    select
        case when by_fork then null else run_id end as run_id,
        by_fork,
        sum(questions)::bigint as questions,
        sum(replies)::bigint as replies,
        sum(input_tokens)::bigint as input_tokens,
        sum(cached_tokens)::bigint as cached_tokens,
        sum(output_tokens)::bigint as output_tokens,
        sum(spent_usd)::decimal(38, 15) as spent_usd,
        sum(reserved_usd)::decimal(38, 15) as reserved_usd,
        sum(unresolved_usd)::decimal(38, 15) as unresolved_usd,
        min(counted_at) as first_at,
        max(counted_at) as last_at
    from account_lines
    group by all
)
select
    m.run_id,
    case when m.by_fork then '(forked)' else coalesce(r.command, '') end as command,
    d.label as dataset,
    g.label as grader,
    b.label as rubric,
    m.* exclude (run_id, by_fork)
from sums m
left join runs r using (run_id)
left join datasets d using (version_id)
left join setups s using (setup_id)
left join grader_labels g on g.grader_id = s.grader_id
left join rubric_labels b on b.rubric_id = s.rubric_id;

-- One row a model, without the date of its snapshot; '' where neither a reply nor the attempt names one. What a fork left
-- with the original is a row of its own, (forked).
create or replace view money_by_model as
select
    case when by_fork then '(forked)' else model end as model,
    sum(questions)::bigint as questions,
    sum(replies)::bigint as replies,
    sum(input_tokens)::bigint as input_tokens,
    sum(cached_tokens)::bigint as cached_tokens,
    sum(output_tokens)::bigint as output_tokens,
    sum(spent_usd)::decimal(38, 15) as spent_usd,
    sum(reserved_usd)::decimal(38, 15) as reserved_usd,
    sum(unresolved_usd)::decimal(38, 15) as unresolved_usd,
    min(counted_at) as first_at,
    max(counted_at) as last_at
from account_lines
group by 1;

-- One row an attempt that went by batch, with the batch it became ('' before the provider named one), and a row without
-- an attempt for all that went call by call. What a fork left with the original is a row of its own, (forked).
create or replace view money_by_batch as
select
    case when by_fork then '(forked)' else batch_id end as batch_id,
    case when by_batch and not by_fork then attempt_id end as attempt_id,
    sum(questions)::bigint as questions,
    sum(replies)::bigint as replies,
    sum(input_tokens)::bigint as input_tokens,
    sum(cached_tokens)::bigint as cached_tokens,
    sum(output_tokens)::bigint as output_tokens,
    sum(spent_usd)::decimal(38, 15) as spent_usd,
    sum(reserved_usd)::decimal(38, 15) as reserved_usd,
    sum(unresolved_usd)::decimal(38, 15) as unresolved_usd,
    min(counted_at) as first_at,
    max(counted_at) as last_at
from account_lines
group by 1, 2;
