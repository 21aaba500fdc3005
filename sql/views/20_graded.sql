-- One row an example x grader x rubric: the grade that counts. score is the newest that could be read, or the mean of the
-- samples asked together with it, of which samples tells the number and spread the standard deviation; it is null where there
-- is none, and reason says why. expected is the newest mean score under the model's own probabilities, explanation what was
-- said beside the score, or the newest that was said at all. usd is what all asking about it has cost.
create or replace view graded as
with answers as (
    select
        q.example_id, s.grader_id, s.rubric_id, q.setup_id, q.sample, p.outcome, p.attempt_id, p.request_id, p.model, p.text, p.recorded_at,
        d.reading.score as score, d.reading.expected as expected,
        d.reading.reason as reason, d.reading.explanation as explanation
    from replies p
    join questions q using (key)
    join setups s using (setup_id)
    left join latest_readings d using (attempt_id, key, request_id)
    where s.task = 'grade'
),
by_sample as (  -- of each question the newest reply that could be read, else the newest; who graded stands in each step, so that a filter reaches the first
    select
        example_id, grader_id, rubric_id, setup_id, sample, count(*) as replies,
        arg_max(
            {'score': score, 'expected': expected, 'reason': reason, 'explanation': explanation,
             'model': model, 'text': text, 'recorded_at': recorded_at},
            {'readable': score is not null, 'recorded_at': recorded_at, 'attempt_id': attempt_id, 'request_id': request_id}
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
        avg(b.answer.expected) as expected,
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
            {'score': score, 'samples': samples, 'spread': spread, 'reason': answer.reason, 'explanation': answer.explanation,
             'model': answer.model, 'text': answer.text, 'recorded_at': recorded_at},
            {'readable': score is not null, 'recorded_at': recorded_at, 'setup_id': setup_id}
        ) as answer,
        arg_max(expected, recorded_at) filter (where expected is not null) as expected,
        arg_max(answer.explanation, recorded_at) filter (where answer.explanation is not null and score is not null) as explanation
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
    c.expected as expected,
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
