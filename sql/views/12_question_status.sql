-- Internal.
-- One row per question that has a reply (setup, subject, sample): how many answers there are or may be, whether one of
-- them is usable (done), whether asking again is of no use (final: too long, refused, nothing to measure), and when the
-- newest reply came, how it ended and its reason.
create or replace view question_status as
select
    q.setup_id,
    q.subject_id,
    q.sample,
    count(*) filter (where p.outcome in ('answered', 'unknown')) as answers,
    coalesce(bool_or(d.reading.usable), false) as done,
    coalesce(
        bool_or(d.reading.reason in ('too_long', 'refused', 'empty_output', 'too_short', 'not_finite')), false
    ) as final,
    max(p.recorded_at) as newest_at,
    arg_max(p.outcome, {'recorded_at': p.recorded_at, 'request_id': p.request_id}) as newest_outcome,
    split_part(
        arg_max(coalesce(p.error, ''), {'recorded_at': p.recorded_at, 'request_id': p.request_id}), ':', 1
    ) as newest_reason
from questions q
join replies p using (key)
left join latest_readings d using (attempt_id, key, request_id)
group by q.setup_id, q.subject_id, q.sample;

-- Internal.
-- One row per distinct example of a dataset version: the position where it stands first.
create or replace view first_positions as
select version_id, example_id, min(position) as position
from dataset_rows
group by version_id, example_id;

-- Internal.
-- One row per thing that a run can ask about, in the order of its source: the distinct rows of a dataset version, or the
-- subjects of a list.
create or replace view source_items as
select version_id as source_id, position, example_id as subject_id, example_id from first_positions
union all
select l.list_id, l.position, l.subject_id, s.example_id
from subject_lists l
join subjects s using (subject_id);

-- Internal.
-- One row per question in flight: it stands in an attempt that outlives its process, is not closed, and is not
-- unconfirmed ("doubted" in databases of earlier versions).
create or replace view questions_in_flight as
select q.setup_id, q.subject_id, q.sample, q.key, o.attempt_id
from open_attempts o
join attempt_lines l using (attempt_id)
join questions q using (key)
where o.outlives and o.state not in ('doubted', 'unconfirmed');

-- One row per question of any task that has a reply: the reading that counts: of the newest usable reply, else of the
-- newest reply. value is the parsed answer, as JSON; usd is the cost of all its requests.
create or replace view results as
with answers as (
    select
        q.key, q.setup_id, q.subject_id, q.example_id, q.sample, p.model, p.text, p.recorded_at, p.attempt_id,
        p.request_id,
        coalesce(d.reading.usable, false) as usable, d.reading as reading
    from questions q
    join replies p using (key)
    left join latest_readings d using (attempt_id, key, request_id)
),
counting as (
    select
        key, setup_id, subject_id, example_id, sample, count(*) as replies,
        arg_max(
            {'usable': usable, 'reading': reading, 'model': model, 'text': text, 'recorded_at': recorded_at},
            {'usable': usable, 'recorded_at': recorded_at, 'attempt_id': attempt_id, 'request_id': request_id}
        ) as answer
    from answers
    group by key, setup_id, subject_id, example_id, sample
),
paid as (
    select key, sum(spent_usd) as usd from ledger where key is not null group by key
)
select
    s.task, g.label as grader, r.label as rubric, c.subject_id, c.example_id, c.sample, c.answer.usable as usable,
    case when not c.answer.usable then coalesce(c.answer.reading.reason, 'not_read')
        else c.answer.reading.reason
    end as reason,
    c.answer.reading.score as score, c.answer.reading.expected_score as expected_score,
    c.answer.reading.value as value, c.answer.reading.explanation as explanation,
    c.answer.text as reply, c.answer.model as model, c.replies, coalesce(p.usd, 0)::decimal(38, 15) as usd,
    c.answer.recorded_at as recorded_at, c.key, c.setup_id, s.grader_id, s.rubric_id
from counting c
join setups s using (setup_id)
join grader_labels g using (grader_id)
join rubric_labels r using (rubric_id)
left join paid p using (key);
