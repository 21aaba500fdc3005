-- Cost by batch, oldest first, with all single calls in one row. Parameters: none.
select * from money_by_batch order by attempt_id is null, first_at, attempt_id, batch_id;
