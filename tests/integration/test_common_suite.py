from spikeinterface_huidurep import HuiduRepSorter

from ..common_suite import SorterCommonTestSuite


class TestHuiduRep(SorterCommonTestSuite):
    SorterClass = HuiduRepSorter
