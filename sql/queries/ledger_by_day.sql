-- Cost by UTC day. Parameters: none.
select * from money_by_day order by day;
