-- One row per example, grader and rubric: the grade that counts. score is the newest parsed score, or the mean of several samples
-- (samples is their number, spread their standard deviation); it is null where there is none, with the cause in reason. expected_score is the newest mean score under the model's probabilities, explanation the text beside the score, or the newest text. usd is the cost of all replies.
-- Rows that audits changed are examples too; graded_rows leaves them out.
create or replace view graded as
with answers as (
    select
        q.example_id, s.grader_id, s.rubric_id, q.setup_id, q.sample, p.outcome, p.attempt_id, p.request_id, p.model,
        p.text, p.recorded_at,
        d.reading.score as score, d.reading.expected_score as expected_score,
        d.reading.reason as reason, d.reading.explanation as explanation
    from replies p
    join questions q using (key)
    join setups s using (setup_id)
    left join latest_readings d using (attempt_id, key, request_id)
    where s.task = 'grade'
),
-- of each question the newest reply that could be read, else the newest; who graded stands in each step, so that a
-- filter reaches the first
by_sample as (
    select
        example_id, grader_id, rubric_id, setup_id, sample, count(*) as replies,
        arg_max(
            {'score': score, 'expected_score': expected_score, 'reason': reason, 'explanation': explanation,
             'model': model, 'text': text, 'recorded_at': recorded_at},
            {'readable': score is not null, 'recorded_at': recorded_at, 'attempt_id': attempt_id,
             'request_id': request_id}
        ) as answer
    from answers
    group by example_id, grader_id, rubric_id, setup_id, sample
),
by_setup as (
    select
        b.example_id, b.grader_id, b.rubric_id, b.setup_id,
        sum(b.replies) as replies,
        avg(b.answer.score) as score,
        count(b.answer.score) as samples,
        stddev_samp(b.answer.score) as spread,
        avg(b.answer.expected_score) as expected_score,
        max(b.answer.recorded_at) as recorded_at,
        arg_max(b.answer, {'readable': b.answer.score is not null, 'sample': -b.sample}) as answer
    from by_sample b
    group by b.example_id, b.grader_id, b.rubric_id, b.setup_id
),
counting as (
    select
        example_id, grader_id, rubric_id,
        sum(replies)::bigint as replies,
        arg_max(
            {'score': score, 'samples': samples, 'spread': spread, 'reason': answer.reason,
             'explanation': answer.explanation,
             'model': answer.model, 'text': answer.text, 'recorded_at': recorded_at},
            {'readable': score is not null, 'recorded_at': recorded_at, 'setup_id': setup_id}
        ) as answer,
        arg_max(expected_score, recorded_at) filter (where expected_score is not null) as expected_score,
        arg_max(answer.explanation, recorded_at)
            filter (where answer.explanation is not null and score is not null) as explanation
    from by_setup
    group by example_id, grader_id, rubric_id
),
paid as (
    select q.example_id, s.grader_id, s.rubric_id, sum(l.spent_usd)::decimal(38, 15) as usd
    from ledger l
    join questions q using (key)
    join setups s using (setup_id)
    group by all
)
select
    c.example_id,
    g.label as grader,
    r.label as rubric,
    c.answer.score::decimal(9, 3) as score,
    c.expected_score as expected_score,
    case
        when c.answer.score is null then coalesce(c.answer.reason, 'not_read')
        else c.answer.reason
    end as reason,
    coalesce(c.answer.explanation, c.explanation) as explanation,
    c.answer.model as model,
    c.answer.samples as samples,
    c.answer.spread as spread,
    c.replies,
    coalesce(p.usd, 0)::decimal(38, 15) as usd,
    c.answer.text as reply,
    c.answer.recorded_at as recorded_at,
    c.grader_id,
    c.rubric_id
from counting c
join grader_labels g using (grader_id)
join rubric_labels r using (rubric_id)
left join paid p using (example_id, grader_id, rubric_id);
