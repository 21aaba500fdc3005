-- Internal.
-- One row per reply with a known usage: its tokens and cost.
create or replace view charged_answers as
with counted as (
    select
        p.attempt_id, p.key, p.request_id,
        case when json_type(try_cast(p.usage as json), '$.prompt_tokens') = 'UBIGINT'
            then json_extract(try_cast(p.usage as json), '$.prompt_tokens')::ubigint
        end as input_tokens,
        case when json_type(try_cast(p.usage as json), '$.completion_tokens') = 'UBIGINT'
            then json_extract(try_cast(p.usage as json), '$.completion_tokens')::ubigint
        end as output_tokens,
        p.recorded_at
    from replies p
    where p.outcome = 'answered' and p.usage is not null
),
charged as (
    select attempt_id, key, request_id, sum(spent_usd) as usd
    from ledger
    where kind = 'charge' and key is not null
    group by attempt_id, key, request_id
)
select
    a.run_id, c.attempt_id, c.key, c.request_id, c.input_tokens::bigint as input_tokens,
    c.output_tokens::bigint as output_tokens,
    coalesce(m.usd, 0)::decimal(38, 15) as usd, c.recorded_at
from counted c
join attempts a using (attempt_id)
left join charged m using (attempt_id, key, request_id)
where c.input_tokens <= 1000000000000 and c.output_tokens <= 1000000000000;

-- One row per reply with a known usage: its task, grader and rubric, the model that the reply names, its tokens and
-- cost.
create or replace view answer_costs as
select
    s.task, g.label as grader, b.label as rubric, p.model, c.input_tokens, c.output_tokens, c.usd, c.recorded_at,
    c.run_id, c.attempt_id, c.key, c.request_id
from charged_answers c
join replies p using (attempt_id, key, request_id)
join questions q using (key)
join setups s using (setup_id)
left join grader_labels g using (grader_id)
left join rubric_labels b using (rubric_id);

-- One row per run with an estimate and answers: predicted and actual figures of the answered requests. Tokens are per answer.
-- A ratio is actual / predicted, null where nothing was predicted. The estimate is the grader's own, without correction by past runs; expected_usd is with it, as it was shown before the run. seconds runs to the last answer, even if a later command collected it.
create or replace view predictions as
with planned as (
    select
        run_id, command, setup_id, version_id, started_at,
        json_extract_string(facts, '$.backend.by') as by,
        json_extract_string(facts, '$.estimate.requests')::bigint as requests,
        try_cast(json_extract_string(facts, '$.estimate.usd') as decimal(38, 15)) as usd,
        try_cast(json_extract_string(facts, '$.expected_usd') as decimal(38, 15)) as expected_usd,
        json_extract_string(facts, '$.estimate.input_tokens')::double as input_tokens,
        json_extract_string(facts, '$.estimate.output_tokens')::double as output_tokens,
        json_extract_string(facts, '$.estimate.seconds')::double as seconds
    from (select * replace (try_cast(facts as json) as facts) from runs)
    where json_type(facts, '$.estimate') = 'OBJECT'
),
taken as (
    select
        run_id,
        count(*) as answers,
        sum(usd) as usd,
        avg(usd::double) as answer_usd,
        stddev_samp(usd::double) as answer_usd_sd,
        avg(input_tokens) as input_tokens,
        avg(output_tokens) as output_tokens,
        max(recorded_at) as last_at
    from charged_answers
    group by run_id
)
select
    p.run_id, p.started_at, p.command, s.task, d.label as dataset, g.label as grader, b.label as rubric, p.by,
    p.requests, t.answers,
    (p.usd * t.answers / p.requests)::decimal(38, 15) as predicted_usd,
    (coalesce(p.expected_usd, p.usd) * t.answers / p.requests)::decimal(38, 15) as expected_usd,
    t.usd::decimal(38, 15) as usd,
    t.usd::double / nullif(p.usd::double * t.answers / p.requests, 0) as usd_ratio,
    p.input_tokens / p.requests as predicted_input_tokens,
    t.input_tokens as input_tokens,
    t.input_tokens / nullif(p.input_tokens / p.requests, 0) as input_ratio,
    p.output_tokens / p.requests as predicted_output_tokens,
    t.output_tokens as output_tokens,
    t.output_tokens / nullif(p.output_tokens / p.requests, 0) as output_ratio,
    p.seconds as predicted_seconds,
    greatest(e.seconds, epoch(t.last_at - p.started_at)) as seconds,
    t.answer_usd, t.answer_usd_sd,
    g.name as grader_name, s.grader_id, s.rubric_id
from planned p
join taken t using (run_id)
left join run_ends e using (run_id)
left join dataset_labels d using (version_id)
left join setups s using (setup_id)
left join grader_labels g using (grader_id)
left join rubric_labels b using (rubric_id)
where p.requests > 0;
