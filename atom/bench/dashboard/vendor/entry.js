// The parts of Apache ECharts that the dashboard draws with, as the global `echarts`.
import * as core from "echarts/core";
import { BarChart, CustomChart, LineChart, ScatterChart } from "echarts/charts";
import { GridComponent, TooltipComponent } from "echarts/components";
import { LabelLayout } from "echarts/features";
import { CanvasRenderer } from "echarts/renderers";

core.use([BarChart, CustomChart, LineChart, ScatterChart]);
core.use([GridComponent, TooltipComponent, LabelLayout, CanvasRenderer]);

window.echarts = { init: core.init };
