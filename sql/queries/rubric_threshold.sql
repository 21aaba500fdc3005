-- A rubric's own threshold. Parameters: rubric_id.
select threshold from rubric_labels where rubric_id = $rubric_id::uuid;
