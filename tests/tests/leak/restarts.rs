//! Agents and controllers that go and come.

use crate::field::{ENOUGH, Field, NODES};
use firebreak_tests::scaled;

#[test]
fn an_agent_that_is_killed_and_started_again_opens_nothing_and_stops_nothing() {
    let mut field = Field::start("lk").unwrap();
    let checker = field.check().unwrap();
    for round in 0..scaled(3, 100) {
        field.restart_agent(NODES[round % NODES.len()]).unwrap();
    }
    checker.wait_for(ENOUGH).unwrap();
    checker.stop().unwrap().clean("agents killed", ENOUGH).unwrap();
}

#[test]
fn a_controller_that_goes_and_comes_back_opens_nothing_and_stops_nothing() {
    let mut field = Field::start("lc").unwrap();
    let checker = field.check().unwrap();
    for round in 0..scaled(2, 20) {
        if round % 2 == 0 {
            field.site.controller.kill().unwrap();
        } else {
            field.site.controller.terminate().unwrap();
        }
        checker.wait_for(300).unwrap();
        // An agent that starts without a controller is the hardest case.
        field.site.agent(NODES[round % 2]).unwrap().kill().unwrap();
        field.site.start_agent_again(NODES[round % 2]).unwrap();
        checker.wait_for(300).unwrap();
        field.site.start_controller_again().unwrap();
        field.wait_converged().unwrap();
    }
    checker.wait_for(ENOUGH).unwrap();
    checker.stop().unwrap().clean("controller lost", ENOUGH).unwrap();
}
