-- How much the scores tell the rows apart: the view score_entropy, with whether the grader gives expected scores too.
-- Parameters: dataset, grader, rubric (labels; null for all, hidden rubrics left out).
select
    e.dataset, e.grader, e.rubric, e.scored, e.distinct_scores, e.commonest_score, e.commonest_rows, e.commonest_share,
    e.entropy_bits, e.degenerate, g.mean_expected_score is not null as has_expected_scores
from score_entropy e
join gradings g using (version_id, grader_id, rubric_id)
join rubric_labels b using (rubric_id)
where ($dataset is null or e.dataset = $dataset)
  and ($grader is null or e.grader = $grader)
  and (e.rubric = $rubric or ($rubric is null and not b.hidden))
order by e.dataset, e.grader, e.rubric;
