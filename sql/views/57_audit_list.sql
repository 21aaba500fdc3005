-- One row per finished audit of a grader by a rubric: the dataset whose rows were taken, how many were wanted, the seed,
-- and what it has shown, in one line (verdict) and in a few words (short).
create or replace view audit_list as
select
    d.label as dataset, m.label as audit, g.label as grader, b.label as rubric, a.rows, a.seed, v.verdict, v.short,
    v.facts, v.recorded_at, v.audit_id, v.setup_id, v.grader_id, v.rubric_id
from audit_verdicts v
join audits a using (audit_id)
join dataset_labels m on m.version_id = a.audit_id
join dataset_labels d on d.version_id = a.source_version_id
join grader_labels g using (grader_id)
join rubric_labels b using (rubric_id);
