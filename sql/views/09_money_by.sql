-- One row per UTC day: requests sent and their reserved or unresolved dollars, on the day they were sent;
-- replies, tokens and dollars spent on the day they were booked. A fork of the database subtracts what stayed with the
-- original.
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

-- One row per run that may have cost money, with its task, dataset, grader and rubric. What a fork left with the original is a separate
-- row without a run; its command is (forked).
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
    s.task,
    d.label as dataset,
    g.label as grader,
    b.label as rubric,
    m.* exclude (run_id, by_fork)
from sums m
left join runs r using (run_id)
left join dataset_labels d using (version_id)
left join setups s using (setup_id)
left join grader_labels g on g.grader_id = s.grader_id
left join rubric_labels b on b.rubric_id = s.rubric_id;

-- One row per model, without the date of its snapshot; '' if unknown. What a fork left with the original is a separate
-- row, (forked).
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

-- One row per batch attempt, with its batch id ('' before the provider assigned one), and one row without an attempt for all
-- single calls. What a fork left with the original is a separate row, (forked).
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
