-- One row per pair of an audit x grader x rubric that has graded both sides: a row as it is (original), and as the audit
-- changed it. expects says what a grader that is worth something does: lower, the changed output scores lower, or
-- not_higher. The scores are first answers, those of a second asking left out; with the answer format expected_score
-- they are expected scores, cut to the thousandth. Null where an answer could not be read.
create or replace view audited_pairs as
with first_answers as (
    select
        r.subject_id, r.setup_id, r.grader, r.rubric, r.grader_id, r.rubric_id,
        case when try_cast(s.decoding as json) ->> 'contract' = 'expected' then 'expected_score'
            else try_cast(s.decoding as json) ->> 'contract'
        end as answer_format,
        case when answer_format = 'expected_score' then floor(r.expected_score * 1000) / 1000 else r.score::double
        end as score
    from results r
    join setups s using (setup_id)
    where r.task = 'grade' and r.sample = 0
)
select
    d.label as dataset, m.label as audit, o.grader, o.rubric, o.answer_format, p.kind, p.expects,
    o.score as original_score, c.score as changed_score,
    a.instruction, a.input, a.output as original_output, b.output as changed_output,
    length(a.output) as original_chars, length(b.output) as changed_chars,
    p.position, p.example_id, p.changed_id, p.audit_id, o.setup_id, o.grader_id, o.rubric_id
from audit_pairs p
join audits t using (audit_id)
join dataset_labels m on m.version_id = p.audit_id
join dataset_labels d on d.version_id = t.source_version_id
join first_answers o on o.subject_id = p.example_id
join first_answers c on c.subject_id = p.changed_id and c.setup_id = o.setup_id
join examples a on a.example_id = p.example_id
join examples b on b.example_id = p.changed_id;
