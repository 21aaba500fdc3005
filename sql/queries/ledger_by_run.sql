-- Cost by run, oldest first; what a fork left with the original is last. Parameters: none.
select * from money_by_run order by run_id is null, first_at, run_id;
