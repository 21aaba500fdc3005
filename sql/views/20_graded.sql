-- One row an example x grader x rubric: the grade that counts, which is the newest reply that could be read, else the
-- newest reply. score is null where there is none, and reason says why; usd is what all asking about it has cost.
create or replace view graded as
with answers as (
    select
        q.example_id, s.grader_id, s.rubric_id, q.key, p.attempt_id, p.request_id, p.outcome, p.model, p.text, p.recorded_at,
        d.reading.score as score, d.reading.expected as expected,
        d.reading.reason as reason, d.reading.explanation as explanation
    from replies p
    join questions q using (key)
    join setups s using (setup_id)
    left join latest_readings d using (attempt_id, key, request_id)
    where s.task = 'grade'
),
counting as (
    select
        example_id, grader_id, rubric_id,
        count(*) as replies,
        arg_max(
            {'key': key, 'score': score, 'expected': expected, 'reason': reason, 'explanation': explanation,
             'model': model, 'text': text, 'recorded_at': recorded_at},
            {'readable': score is not null, 'recorded_at': recorded_at, 'attempt_id': attempt_id, 'request_id': request_id}
        ) as answer
    from answers
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
    c.answer.score as score,
    c.answer.expected as expected,
    case
        when c.answer.score is null then coalesce(c.answer.reason, 'not_read')
        else c.answer.reason
    end as reason,
    c.answer.explanation as explanation,
    c.answer.model as model,
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
