-- One row per audit x grader x rubric x kind of change: how many pairs have both scores, in how many the original scored
-- higher, the same (ties) or lower than the changed output, the mean scores, and in how many the original's output is
-- longer or shorter.
create or replace view audit_kinds as
select
    dataset, audit, grader, rubric, answer_format, kind, expects,
    count(original_score - changed_score) as pairs,
    count(*) filter (where original_score > changed_score) as original_higher,
    count(*) filter (where original_score = changed_score) as ties,
    count(*) filter (where original_score < changed_score) as original_lower,
    count(*) - count(original_score - changed_score) as no_score,
    avg(original_score) filter (where changed_score is not null) as mean_original_score,
    avg(changed_score) filter (where original_score is not null) as mean_changed_score,
    count(*) filter (where original_chars > changed_chars and original_score - changed_score is not null)
        as original_longer,
    count(*) filter (where original_chars < changed_chars and original_score - changed_score is not null)
        as original_shorter,
    audit_id, setup_id, grader_id, rubric_id
from audited_pairs
group by all;
