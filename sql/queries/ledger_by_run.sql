-- Where the money went, by run, oldest first; what a fork left with the original comes last. Parameters: none.
select * from money_by_run order by run_id is null, first_at, run_id;
