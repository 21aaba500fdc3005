-- A rubric's own threshold. Parameters: rubric (its label).
select threshold from rubric_labels where label = $rubric;
