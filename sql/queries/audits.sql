-- What audits of graders have shown, newest first. Parameters: none.
select recorded_at, dataset, grader, rubric, rows, seed, verdict from audit_list order by recorded_at desc, grader, rubric;
